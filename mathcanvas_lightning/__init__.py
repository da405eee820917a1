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
    from mathcanvas_lightning.evaluation.report import write_report
    from mathcanvas_lightning.evaluation.scoring import score_responses
    from mathcanvas_lightning.generation.backend import EchoBackend, GenerationBackend, generate
    from mathcanvas_lightning.generation.bagel_backend import BagelBackend
    from mathcanvas_lightning.generation.batch_tool import generate_responses
    from mathcanvas_lightning.generation.datamodule import RecordDataModule
    from mathcanvas_lightning.generation.guidance import DrawingConfig
    from mathcanvas_lightning.generation.module import GenerationModule
    from mathcanvas_lightning.generation.prompts import ChatPrompt
    from mathcanvas_lightning.generation.reasoning_folders import ReasoningFolders
    from mathcanvas_lightning.generation.records import RecordInput
    from mathcanvas_lightning.generation.requests import (
        GenerationRequest,
        GenerationResponse,
        Message,
        Picture,
        Sampling,
    )
    from mathcanvas_lightning.generation.server_backend import ServerBackend
    from mathcanvas_lightning.generation.server_process import ServerConfig
    from mathcanvas_lightning.generation.vllm_backend import VLLMBackend
    from mathcanvas_lightning.generation.writer import ResponseWriter
    from mathcanvas_lightning.model.bagel import Bagel
    from mathcanvas_lightning.model.config import BagelConfig
    from mathcanvas_lightning.model.vae import LatentVAE
    from mathcanvas_lightning.training.module import BagelModule

__version__ = "0.1.0"

_HOMES = {
    "Bagel": "model.bagel",
    "BagelBackend": "generation.bagel_backend",
    "BagelConfig": "model.config",
    "BagelModule": "training.module",
    "ChatPrompt": "generation.prompts",
    "ConversionReport": "conversion.convert",
    "DatasetConfig": "data.mixture",
    "DrawingConfig": "generation.guidance",
    "EchoBackend": "generation.backend",
    "GenerationBackend": "generation.backend",
    "GenerationModule": "generation.module",
    "GenerationRequest": "generation.requests",
    "GenerationResponse": "generation.requests",
    "ImageSegment": "data.schema",
    "ImageTransform": "data.transforms",
    "InterleavedExample": "data.schema",
    "LatentVAE": "model.vae",
    "MathCanvasDataModule": "data.datamodule",
    "MathCanvasError": "errors",
    "Message": "generation.requests",
    "MicroBatch": "batch",
    "PackedBatch": "batch",
    "Picture": "generation.requests",
    "ReasoningFolders": "generation.reasoning_folders",
    "RecordDataModule": "generation.datamodule",
    "RecordInput": "generation.records",
    "ResponseWriter": "generation.writer",
    "Sampling": "generation.requests",
    "ServerBackend": "generation.server_backend",
    "ServerConfig": "generation.server_process",
    "SourceFormat": "conversion.sources",
    "TextSegment": "data.schema",
    "TokenGeometry": "batch",
    "VLLMBackend": "generation.vllm_backend",
    "convert_cot": "conversion.convert",
    "generate": "generation.backend",
    "generate_blockmoving": "conversion.blockmoving.generate",
    "generate_responses": "generation.batch_tool",
    "index_shards": "data.indexing",
    "inspect_shards": "data.inspection",
    "iter_examples": "data.shards",
    "score_responses": "evaluation.scoring",
    "write_report": "evaluation.report",
}

__all__ = [
    "Bagel",
    "BagelBackend",
    "BagelConfig",
    "BagelModule",
    "ChatPrompt",
    "ConversionReport",
    "DatasetConfig",
    "DrawingConfig",
    "EchoBackend",
    "GenerationBackend",
    "GenerationModule",
    "GenerationRequest",
    "GenerationResponse",
    "ImageSegment",
    "ImageTransform",
    "InterleavedExample",
    "LatentVAE",
    "MathCanvasDataModule",
    "MathCanvasError",
    "Message",
    "MicroBatch",
    "PackedBatch",
    "Picture",
    "ReasoningFolders",
    "RecordDataModule",
    "RecordInput",
    "ResponseWriter",
    "Sampling",
    "ServerBackend",
    "ServerConfig",
    "SourceFormat",
    "TextSegment",
    "TokenGeometry",
    "VLLMBackend",
    "convert_cot",
    "generate",
    "generate_blockmoving",
    "generate_responses",
    "index_shards",
    "inspect_shards",
    "iter_examples",
    "score_responses",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
