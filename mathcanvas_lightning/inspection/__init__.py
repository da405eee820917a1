"""Shards and packs, shown: tables, pictures, pages.

In: shards or a training configuration. Out: counts and faults, a PNG of a pack, an HTML page.
"""
