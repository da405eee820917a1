"""Layers of the network: attention, mixture-of-transformers decoder, ViT, text loss.

In: packed tokens. Out: packed tokens.
"""
