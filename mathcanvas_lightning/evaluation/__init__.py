"""Scores of answers: extraction, comparison with the reference, a model as judge, metrics."""
