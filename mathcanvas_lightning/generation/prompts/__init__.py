"""Builds the request for a record.

In: a record. Out: messages with texts and pictures.
"""
