"""Files of questions and answers: formats, field mapping, pictures, filters, the first survey.

In: JSON, JSON lines, CSV or Parquet. Out: records with their pictures, checked before a model
starts. Used by generation and evaluation.
"""
