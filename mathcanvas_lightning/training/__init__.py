"""Fine-tuning under Lightning.

In: micro-batches and initial weights. Out: checkpoints, metrics and validation pictures.
"""
