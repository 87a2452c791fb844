"""``batchyard tune``: TensorFlow Serving's tuning guide as an experiment."""
