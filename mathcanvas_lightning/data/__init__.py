"""From shards to what the model trains on."""
