"""Answers for thousands of records, from any model behind a backend."""
