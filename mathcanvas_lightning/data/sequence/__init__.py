"""One row to one training sequence.

In: texts and images with their roles. Out: token ids, splits, positions and labels; then several
of them as one `PackedBatch`.
"""
