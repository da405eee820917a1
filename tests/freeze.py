"""Imported last by a server that forks processes: they don't scan what it has imported.

A scan of a million objects takes a second, and copies the memory that holds them.
"""

import gc

gc.collect()
gc.freeze()
