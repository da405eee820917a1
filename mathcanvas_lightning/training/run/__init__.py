"""One folder for each training run: settings, metrics, curves, page, log and checkpoints.

In: the Trainer's root folder. Out: the files of the run, and the paths that later commands need.
"""
