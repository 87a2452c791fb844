"""A worker's card: batches go there and come back by transfers of our own."""
