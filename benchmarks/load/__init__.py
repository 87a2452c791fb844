"""The engine of ``batchyard load``: requests sent as planned, every outcome counted."""
