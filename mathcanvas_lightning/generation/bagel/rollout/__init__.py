"""What a problem reads, writes or draws next; there is no network in this folder.

In: problems. Out: rollouts, which a solver asks what they need, and gives texts and drawings.
"""
