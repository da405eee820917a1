"""Which sample is trained on when, and in which pack: pure functions of index, seed and epoch.

In: token counts. Out: packs in order, and the position of a run in them.
"""
