"""One row to one training sequence.

In: texts and images with their roles. Out: token ids, splits, positions and labels of a row; then
several rows as one `PackedBatch`.
"""
