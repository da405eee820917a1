"""BAGEL as a plain PyTorch network; Lightning comes later."""
