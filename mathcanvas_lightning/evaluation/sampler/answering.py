"""Answers requests with the network of a training, which stays as it is."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import generate
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.problem import Mode
from mathcanvas_lightning.generation.bagel.workshop import MEMORY_SHARE, free_bytes
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
)
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.parallelize import gathered
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.numeric import autocast_dtype
from mathcanvas_lightning.training.strategy import ShardedStrategy, device_mesh

log = logging.getLogger(__name__)

GENERATION_FAILURE = "generation"
"""Failure kind of the requests that were pending when the generator stopped."""
NO_ROOM = "a rank has too little free memory for the weights of all ranks: no answers were sampled"


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class AnswerSettings:
    """How the network answers; as in `BagelBackend`, but for fewer and shorter answers."""

    mode: Mode = "interleaved"
    """interleaved (texts and drawings), understanding (only text), or image (one drawing)."""
    think: bool = False
    """Whether to add a system prompt that asks the model to think first."""
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    """Settings of the drawings."""
    max_steps: int = 10
    """Maximum number of texts in an answer; a drawing may follow each text."""
    max_images: int = 10
    """Maximum number of drawings in an answer."""
    max_batch_size: int = 16
    """Maximum number of problems in progress on a rank, if memory allows."""
    max_context_tokens: int | None = None
    """Maximum length of a question with its answer; by default that of the model, at most
    16,384. A lower one needs less memory."""
    vae_transform: ImageTransform | None = None
    """How pictures are resized for the VAE; by default as in the first validation set."""
    vit_transform: ImageTransform | None = None
    """How the resized picture is resized for the ViT; by default as in that set."""


def require_strategy(trainer: Trainer, module: BagelModule) -> None:
    """Checks that each rank can hold the network to answer with it.

    Args:
        trainer: The Trainer.
        module: The module of the training.

    Raises:
        ConfigError: If it can't.
    """
    strategy = trainer.strategy
    known = isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ShardedStrategy)
    offloads = (
        module.parallelism.cpu_offload
        and isinstance(strategy, ShardedStrategy)
        and strategy.root_device.type != "cpu"
    )
    if known and not offloads:
        return
    found = type(strategy).__name__ + (" with parallelism.cpu_offload" if offloads else "")
    raise ConfigError(
        "trainer.strategy",
        found=f"{found}, with an AnswerSampler",
        wanted="one device, ddp, or ShardedStrategy without cpu_offload: each rank needs the whole "
        "network on its device to answer",
        remedy="Leave the AnswerSampler out; export checkpoints and answer with mathcanvas "
        "predict instead.",
    )


def answer_all(
    trainer: Trainer,
    module: BagelModule,
    requests: Sequence[GenerationRequest],
    settings: AnswerSettings,
) -> list[GenerationResponse]:
    """Answers requests with the weights that validation uses; each rank answers a share.

    All ranks must call it together, outside a forward pass. Global random states, the weights
    and their type stay as they are, and the memory of the generator is freed. An error of the
    generator becomes the failure of the requests that it left open.

    Args:
        trainer: The Trainer.
        module: The module, in validation.
        requests: The requests, the same on all ranks.
        settings: How to answer.

    Returns:
        On all ranks, a response for each request, in order.
    """
    if not trainer.strategy.reduce_boolean_decision(_has_room(module), all=True):
        log.warning(NO_ROOM)
        failure = Failure(kind=GENERATION_FAILURE, message=NO_ROOM)
        return [GenerationResponse(uid=one.uid, failure=failure) for one in requests]
    share = requests[trainer.global_rank :: trainer.world_size]
    with _lent(module) as network:
        responses = _answer(network, trainer, module, share, settings)
    if module.device.type == "cuda":
        torch.cuda.empty_cache()
    if trainer.world_size > 1:
        shares: list[list[GenerationResponse]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(shares, responses)
        responses = [response for found in shares for response in found]
    by_uid = {response.uid: response for response in responses}
    return [by_uid[request.uid] for request in requests]


def _answer(
    network: Bagel,
    trainer: Trainer,
    module: BagelModule,
    requests: Sequence[GenerationRequest],
    settings: AnswerSettings,
) -> list[GenerationResponse]:
    """Answers the requests of this rank, without collectives; never raises an Exception."""
    answered: dict[str, GenerationResponse] = {}
    failure = Failure(kind=GENERATION_FAILURE, message="the generator gave no answer")
    backend: BagelBackend | None = None
    try:
        backend = _make_backend(trainer, module, settings)
        autocast = autocast_dtype(module.precision, device_mesh(trainer.strategy))
        backend.use(network, module.vae, _tokenizer(trainer, module), autocast=autocast)
        for response in generate(backend, requests):
            answered[response.uid] = response
    except Exception as error:  # the training, which may be days old, must continue
        log.warning("answering held-out records failed: %s: %s", type(error).__name__, error)
        failure = Failure(kind=GENERATION_FAILURE, message=f"{type(error).__name__}: {error}")
    finally:
        if backend is not None:
            backend.close()
    return [
        answered.get(one.uid) or GenerationResponse(uid=one.uid, failure=failure)
        for one in requests
    ]


def _has_room(module: BagelModule) -> bool:
    """Whether this rank's device has room for all weights, if they are sharded."""
    if module.device.type != "cuda" or device_mesh(module.trainer.strategy) is None:
        return True
    count = sum(parameter.numel() for parameter in module.network.parameters())
    return count * module.compute_dtype.itemsize < MEMORY_SHARE * free_bytes(module.device)


@contextmanager
def _lent(module: BagelModule) -> Iterator[Bagel]:
    """Lends the network to a generator; afterwards everything is as before."""
    network = module.network
    path = network.attention_path
    # Compiled layers would be compiled again for each length, until torch gives up on them.
    with isolate_rng(), gathered(network), torch.compiler.set_stance("force_eager"):
        network.attention_path = "sdpa"
        try:
            yield network
        finally:
            network.attention_path = path


def _make_backend(trainer: Trainer, module: BagelModule, settings: AnswerSettings) -> BagelBackend:
    data = getattr(trainer, "datamodule", None)
    sets = [*getattr(data, "validation_configs", ()), *getattr(data, "train_configs", ())]
    vae, vit = (sets[0].vae_transform, sets[0].vit_transform) if sets else (None, None)
    return BagelBackend(
        module.source.checkpoint or "the network in training",
        mode=settings.mode,
        think=settings.think,
        drawing=replace(settings.drawing, size=settings.drawing.size or module.drawing_size),
        max_steps=settings.max_steps,
        max_images=settings.max_images,
        max_batch_size=settings.max_batch_size,
        max_context_tokens=settings.max_context_tokens,
        vae_transform=settings.vae_transform or vae,
        vit_transform=settings.vit_transform or vit,
        interpolate_positions=bool(
            getattr(getattr(data, "settings", None), "interpolate_positions", False)
        ),
    )


def _tokenizer(trainer: Trainer, module: BagelModule) -> TextTokenizer:
    tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    return TextTokenizer(module.source.checkpoint)
