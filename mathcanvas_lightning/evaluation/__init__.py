"""Scoring of answered records.

In: answers and references. Out: a verdict for each record, accuracies with intervals, a page.
"""
