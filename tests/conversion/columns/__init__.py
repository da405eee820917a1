"""Tests of the source `columns`."""
