"""Decides whether an extracted answer equals the reference.

In: two texts. Out: equal, different or undecided.
"""
