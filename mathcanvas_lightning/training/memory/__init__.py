"""Computes the memory of a run before it starts.

In: a run's configuration and a number of GPUs. Out: a table of the memory of a GPU and a host, and
the settings that save memory if the run does not fit.
"""
