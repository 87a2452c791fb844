"""The worker process: from the packet that brings a batch to the one that answers it."""
