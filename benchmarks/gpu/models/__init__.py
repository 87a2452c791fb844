"""What they serve: one file for each framework, with python models by name."""
