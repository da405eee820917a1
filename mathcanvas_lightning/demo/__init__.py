"""New small models to start from.

In: a preset and a seed, or a package from the Python index. Out: a complete model directory.
"""
