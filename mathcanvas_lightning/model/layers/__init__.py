"""Layers of the network: attention, mixture-of-transformers decoder, ViT, token loss.

In: packed tokens. Out: packed tokens.
"""
