"""From source data with images to shards."""
