"""Converts parts of an input on several machines, and merges them to one conversion.

In: a conversion job and `i/n`. Out: blocks of converted records in a hidden folder of the output;
merged, they give the same shards, rejects and manifest as one conversion, byte for byte.
"""
