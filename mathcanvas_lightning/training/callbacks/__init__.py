"""What runs beside the training: averages, metrics, pictures, signals, the start page.

In: the hooks of the Trainer. Out: log entries and files.
"""
