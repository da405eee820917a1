"""Answers from a model, in batches.

In: records. Out: answered records, journaled so that a run can resume.
"""
