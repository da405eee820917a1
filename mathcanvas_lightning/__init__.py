"""Teach multimodal models to reason with drawings, in PyTorch Lightning.

Public names are loaded on first use, so importing the package is quick and has no side effect.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mathcanvas_lightning.batch import MicroBatch, PackedBatch, TokenGeometry
    from mathcanvas_lightning.conversion.blockmoving.generate import generate_blockmoving
    from mathcanvas_lightning.conversion.convert import ConversionReport, convert_cot
    from mathcanvas_lightning.conversion.sources import SourceFormat
    from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
    from mathcanvas_lightning.data.indexing import index_shards
    from mathcanvas_lightning.data.inspection import inspect_shards
    from mathcanvas_lightning.data.mixture import DatasetConfig
    from mathcanvas_lightning.data.schema import ImageSegment, InterleavedExample, TextSegment
    from mathcanvas_lightning.data.shards import iter_examples
    from mathcanvas_lightning.data.transforms import ImageTransform
    from mathcanvas_lightning.errors import MathCanvasError
    from mathcanvas_lightning.model.bagel import Bagel
    from mathcanvas_lightning.model.config import BagelConfig
    from mathcanvas_lightning.model.vae import LatentVAE
    from mathcanvas_lightning.training.module import BagelModule

__version__ = "0.1.0"

_HOMES = {
    "Bagel": "model.bagel",
    "BagelConfig": "model.config",
    "ConversionReport": "conversion.convert",
    "DatasetConfig": "data.mixture",
    "ImageSegment": "data.schema",
    "ImageTransform": "data.transforms",
    "InterleavedExample": "data.schema",
    "LatentVAE": "model.vae",
    "MathCanvasDataModule": "data.datamodule",
    "MathCanvasError": "errors",
    "MicroBatch": "batch",
    "PackedBatch": "batch",
    "SourceFormat": "conversion.sources",
    "TextSegment": "data.schema",
    "TokenGeometry": "batch",
    "convert_cot": "conversion.convert",
    "generate_blockmoving": "conversion.blockmoving.generate",
    "inspect_shards": "data.inspection",
    "BagelModule": "training.module",
    "iter_examples": "data.shards",
    "index_shards": "data.indexing",
}

__all__ = [
    "Bagel",
    "BagelConfig",
    "BagelModule",
    "ConversionReport",
    "DatasetConfig",
    "ImageSegment",
    "ImageTransform",
    "InterleavedExample",
    "LatentVAE",
    "MathCanvasDataModule",
    "MathCanvasError",
    "MicroBatch",
    "PackedBatch",
    "SourceFormat",
    "TextSegment",
    "TokenGeometry",
    "convert_cot",
    "generate_blockmoving",
    "index_shards",
    "inspect_shards",
    "iter_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
