"""Writes the shards: columns, splits, the folder and its manifest.

In: samples in order. Out: Parquet files of bounded size that appear whole or not at all.
"""
