"""Decides whether an extracted answer equals the reference.

In: two texts. Out: whether they are equivalent, and the rule that decided.
"""
