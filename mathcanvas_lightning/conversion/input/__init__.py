"""Reads and scans the source files.

In: JSON, JSON lines, CSV, Parquet or WebDataset tars, local or remote. Out: one record at a time,
and a scan of all of them: their number, extra columns and hashes.
"""
