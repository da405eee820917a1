"""Reads and scans the source file.

In: a JSON array or JSON lines, local or remote. Out: one record at a time, and a scan of the whole
file with its format, number of records, extra columns and hashes.
"""
