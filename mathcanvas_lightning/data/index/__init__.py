"""The sidecar index: lengths and sizes of all rows, counted in one scan for each shard.

In: shards and a tokenizer. Out: arrays from which an epoch can be planned without the shards.
"""
