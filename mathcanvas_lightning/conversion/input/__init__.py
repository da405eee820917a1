"""Reads the source: which records there are, where they stand, and their image files.

In: JSON arrays or JSON lines. Out: one record at a time with its line, and checked image bytes.
"""
