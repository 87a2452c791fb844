"""TensorFlow Serving's gRPC interface, by its published messages: a process of its own, a client of
the broker like any other."""
