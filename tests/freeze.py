"""Imported last by a server that forks processes: they don't scan what it has imported.

A scan of a million objects takes a second, and copies the memory that holds them.
"""

import atexit
import gc

gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # else some modules report them as leaks when the server ends
