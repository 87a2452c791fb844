"""``batchyard bench gpu``: what a card does behind the server, beside what it does without."""
