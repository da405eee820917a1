"""Tests of conversions in parts."""
