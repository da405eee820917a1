"""BAGEL as a plain PyTorch network, with its checkpoints.

In: a `PackedBatch` and its latents. Out: hidden states, token losses and velocities. It does
not depend on Lightning.
"""
