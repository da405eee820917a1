"""Converts source data into shards.

In: JSON records of a published data set and their image files. Out: a folder of Parquet shards
with a manifest and a list of rejected records. Needs no torch.
"""
