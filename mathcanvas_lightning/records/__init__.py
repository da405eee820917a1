"""Reads and writes files of questions and answers: formats, field names, pictures, filters, checks.

In: JSON, JSON lines, CSV or Parquet. Out: records with their pictures, checked before a model
starts. Used by generation and evaluation.
"""
