"""Assigns samples to splits and writes the shards.

In: samples in the order of the input. Out: Parquet shards of bounded size and the list of each
split's shards; every file is written atomically.
"""
