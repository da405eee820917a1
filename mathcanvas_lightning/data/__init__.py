"""Shards to packed batches.

In: folders of shards. Out: `MicroBatch` objects, in an order that depends only on the seed.
"""
