"""Image bytes to pixels.

In: encoded bytes. Out: checked sizes, decoded RGB images, and images resized for the VAE and
the ViT.
"""
