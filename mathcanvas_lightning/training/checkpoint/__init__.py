"""Checkpoints of a run: record of the settings, resume, export.

In: a checkpoint file or folder. Out: the run's settings, or a model directory in BAGEL's layout.
"""
