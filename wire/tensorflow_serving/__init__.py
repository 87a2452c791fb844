"""What TensorFlow Serving's clients and files are written in: its published protobuf messages, and
tensors in them. Needs protobuf, and neither TensorFlow nor tensorflow-serving-api."""
