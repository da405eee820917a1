"""The sidecar index: lengths and sizes of all rows, from one scan of each shard.

In: shards and a tokenizer. Out: arrays to plan an epoch without reading the shards.
"""
