"""TensorFlow Serving's REST interface, as a process of its own and a client of the broker."""
