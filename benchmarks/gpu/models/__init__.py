"""What checks and measurements serve: one file for each framework, with python models by name.

``…_networks`` are the networks, ``…_served`` the models that workers load.
"""
