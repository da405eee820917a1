"""Callbacks: moving average, metrics, pictures, signals, start summary.

In: the hooks of the Trainer. Out: log entries and files.
"""
