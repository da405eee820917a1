"""Answers and drawings with their verdicts, as one HTML page.

In: answered records and their folders. Out: a page without outside resources.
"""
