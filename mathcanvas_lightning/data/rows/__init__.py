"""Rows of shards.

In: a file, a row group and a row. Out: the row's texts and images in the order of the sequence,
each with its role.
"""
