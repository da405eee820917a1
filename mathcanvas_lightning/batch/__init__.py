"""The contract between data and model: a packed sequence, its layout, and the micro-batch.

Made in the workers of the data module; moved to the device in one piece.
"""

from mathcanvas_lightning.batch.layout import (
    AttentionMode,
    PackLayout,
    Split,
    TokenGeometry,
    make_splits,
)
from mathcanvas_lightning.batch.micro_batch import LossTotals, MicroBatch, SampleInfo
from mathcanvas_lightning.batch.pack import PackedBatch, to_unit_range

__all__ = [
    "AttentionMode",
    "LossTotals",
    "MicroBatch",
    "PackLayout",
    "PackedBatch",
    "SampleInfo",
    "Split",
    "TokenGeometry",
    "make_splits",
    "to_unit_range",
]
