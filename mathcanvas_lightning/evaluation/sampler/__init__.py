"""Answers to held-out records during a training, with the network that is being trained.

In: a running validation and a file of records. Out: answers with drawings, scores and metrics.
"""
