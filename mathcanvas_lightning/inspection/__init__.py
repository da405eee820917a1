"""Inspection of shards and packs: tables, pictures, pages.

In: shards or a training configuration. Out: counts and problems, a PNG of a pack, an HTML page.
"""
