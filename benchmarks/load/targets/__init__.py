"""The servers that load can be put on, one module an interface."""
