"""Teach multimodal models to reason with drawings, in PyTorch Lightning.

Public names are imported on first use, so importing the package is fast and has no side effects.
"""

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mathcanvas_lightning.batch import MicroBatch, PackedBatch, TokenGeometry
    from mathcanvas_lightning.blockmoving.generate import generate_blockmoving
    from mathcanvas_lightning.conversion.convert import convert_cot
    from mathcanvas_lightning.conversion.parts.merge import merge_conversion
    from mathcanvas_lightning.conversion.report import ConversionReport
    from mathcanvas_lightning.conversion.sources import SourceFormat
    from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
    from mathcanvas_lightning.data.images.resize import ImageTransform
    from mathcanvas_lightning.data.index.build import index_shards
    from mathcanvas_lightning.data.loading.config import DatasetConfig, WorkerConfig
    from mathcanvas_lightning.data.rows.schema import ImageSegment, InterleavedExample, TextSegment
    from mathcanvas_lightning.data.rows.shards import iter_examples
    from mathcanvas_lightning.demo.new_bagel import make_bagel
    from mathcanvas_lightning.errors import MathCanvasError
    from mathcanvas_lightning.evaluation.paired import compare_scores
    from mathcanvas_lightning.evaluation.report.page import write_report
    from mathcanvas_lightning.evaluation.sampler.callback import AnswerSampler
    from mathcanvas_lightning.evaluation.scoring import score_responses
    from mathcanvas_lightning.generation.api import generate_responses
    from mathcanvas_lightning.generation.backends.base import (
        EchoBackend,
        GenerationBackend,
        generate,
    )
    from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
    from mathcanvas_lightning.generation.backends.server.process import ServerConfig
    from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
    from mathcanvas_lightning.generation.bagel.backend import BagelBackend
    from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
    from mathcanvas_lightning.generation.bagel.vllm.backend import (
        TextEngineConfig,
        VLLMBagelBackend,
    )
    from mathcanvas_lightning.generation.events import DrawingEvent, EndEvent, TextEvent
    from mathcanvas_lightning.generation.prompts.chat import ChatPrompt
    from mathcanvas_lightning.generation.requests import (
        GenerationRequest,
        GenerationResponse,
        Message,
        Sampling,
    )
    from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
    from mathcanvas_lightning.generation.run.module import GenerationModule
    from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
    from mathcanvas_lightning.generation.run.writer import ResponseWriter
    from mathcanvas_lightning.inspection.batch import inspect_pack
    from mathcanvas_lightning.inspection.shards import inspect_shards
    from mathcanvas_lightning.model.adapters import LoRASettings
    from mathcanvas_lightning.model.bagel import Bagel
    from mathcanvas_lightning.model.config import BagelConfig
    from mathcanvas_lightning.model.vae import LatentVAE
    from mathcanvas_lightning.records.pictures import Picture
    from mathcanvas_lightning.records.record import RecordInput
    from mathcanvas_lightning.training.checkpoint.export import export_checkpoint
    from mathcanvas_lightning.training.module import BagelModule
    from mathcanvas_lightning.training.optim import OptimizerConfig, ScheduleConfig
    from mathcanvas_lightning.training.run.callback import RunFiles
    from mathcanvas_lightning.training.run.logger import RunLogger
    from mathcanvas_lightning.training.source import ModelSource

__version__ = "0.1.0"

_MODULES = {
    "AnswerSampler": "evaluation.sampler.callback",
    "Bagel": "model.bagel",
    "BagelBackend": "generation.bagel.backend",
    "BagelConfig": "model.config",
    "BagelModule": "training.module",
    "ChatPrompt": "generation.prompts.chat",
    "ConversionReport": "conversion.report",
    "DatasetConfig": "data.loading.config",
    "DrawingConfig": "generation.bagel.guidance",
    "DrawingEvent": "generation.events",
    "EchoBackend": "generation.backends.base",
    "EndEvent": "generation.events",
    "GenerationBackend": "generation.backends.base",
    "GenerationModule": "generation.run.module",
    "GenerationRequest": "generation.requests",
    "GenerationResponse": "generation.requests",
    "ImageSegment": "data.rows.schema",
    "ImageTransform": "data.images.resize",
    "InterleavedExample": "data.rows.schema",
    "LatentVAE": "model.vae",
    "LoRASettings": "model.adapters",
    "MathCanvasDataModule": "data.datamodule",
    "MathCanvasError": "errors",
    "Message": "generation.requests",
    "MicroBatch": "batch",
    "ModelSource": "training.source",
    "OptimizerConfig": "training.optim",
    "PackedBatch": "batch",
    "Picture": "records.pictures",
    "ReasoningFolders": "generation.run.reasoning_folders",
    "RecordDataModule": "generation.run.datamodule",
    "RecordInput": "records.record",
    "ResponseWriter": "generation.run.writer",
    "RunFiles": "training.run.callback",
    "RunLogger": "training.run.logger",
    "Sampling": "generation.requests",
    "ScheduleConfig": "training.optim",
    "ServerBackend": "generation.backends.server.backend",
    "ServerConfig": "generation.backends.server.process",
    "SourceFormat": "conversion.sources",
    "TextEngineConfig": "generation.bagel.vllm.backend",
    "TextEvent": "generation.events",
    "TextSegment": "data.rows.schema",
    "TokenGeometry": "batch",
    "VLLMBackend": "generation.backends.vllm.backend",
    "VLLMBagelBackend": "generation.bagel.vllm.backend",
    "WorkerConfig": "data.loading.config",
    "compare_scores": "evaluation.paired",
    "convert_cot": "conversion.convert",
    "export_checkpoint": "training.checkpoint.export",
    "generate": "generation.backends.base",
    "generate_blockmoving": "blockmoving.generate",
    "generate_responses": "generation.api",
    "index_shards": "data.index.build",
    "inspect_pack": "inspection.batch",
    "inspect_shards": "inspection.shards",
    "iter_examples": "data.rows.shards",
    "merge_conversion": "conversion.parts.merge",
    "make_bagel": "demo.new_bagel",
    "score_responses": "evaluation.scoring",
    "write_report": "evaluation.report.page",
}

__all__ = [
    "AnswerSampler",
    "Bagel",
    "BagelBackend",
    "BagelConfig",
    "BagelModule",
    "ChatPrompt",
    "ConversionReport",
    "DatasetConfig",
    "DrawingConfig",
    "DrawingEvent",
    "EchoBackend",
    "EndEvent",
    "GenerationBackend",
    "GenerationModule",
    "GenerationRequest",
    "GenerationResponse",
    "ImageSegment",
    "ImageTransform",
    "InterleavedExample",
    "LatentVAE",
    "LoRASettings",
    "MathCanvasDataModule",
    "MathCanvasError",
    "Message",
    "MicroBatch",
    "ModelSource",
    "OptimizerConfig",
    "PackedBatch",
    "Picture",
    "ReasoningFolders",
    "RecordDataModule",
    "RecordInput",
    "ResponseWriter",
    "RunFiles",
    "RunLogger",
    "Sampling",
    "ScheduleConfig",
    "ServerBackend",
    "ServerConfig",
    "SourceFormat",
    "TextEngineConfig",
    "TextEvent",
    "TextSegment",
    "TokenGeometry",
    "VLLMBackend",
    "VLLMBagelBackend",
    "WorkerConfig",
    "compare_scores",
    "convert_cot",
    "export_checkpoint",
    "generate",
    "generate_blockmoving",
    "generate_responses",
    "index_shards",
    "inspect_pack",
    "inspect_shards",
    "iter_examples",
    "make_bagel",
    "merge_conversion",
    "score_responses",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return import_module(f"{__name__}.common.display.fields").with_explained_fields(found)
    if name.startswith("_"):  # asked for by tools, such as __wrapped__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hint = _hint(name)
    remedy = f". Did you mean {hint}?" if hint else f"; dir({__name__}) lists the names"
    # Python's own `from ... import` replaces the message of an AttributeError. It asks here first.
    if sys._getframe(1).f_code.co_name == "_handle_fromlist" and not _is_module(name):
        raise ImportError(f"cannot import name {name!r} from {__name__!r}{remedy}", name=__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{remedy}")


@cache  # the parser of a command asks hundreds of times for the same few names
def _hint(name: str) -> str | None:
    found: str | None = import_module(f"{__name__}.common.keys").nearest(name, __all__)
    return found


def _is_module(name: str) -> bool:
    return find_spec(f"{__name__}.{name}") is not None


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
