"""Builds the planned packs in worker processes.

In: a plan and the rows. Out: `MicroBatch` objects; unreadable rows go to the quarantine file.
"""
