"""Computes the memory of a run before it starts.

In comes a run's configuration and a number of GPUs; out goes a table of what a GPU and the host
hold, and the settings that help where it is too much.
"""
