"""Backend for reasoning with drawings in which vLLM writes and the native steps draw."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack, cast

import torch
from lightning.pytorch.utilities import rank_zero_info

from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.settings import journal_options
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.options import BagelSettings
from mathcanvas_lightning.generation.bagel.problem import Mode
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from mathcanvas_lightning.generation.bagel.rollout.solver import ProblemSolver
from mathcanvas_lightning.generation.bagel.vllm.drawer import Drawer
from mathcanvas_lightning.generation.bagel.vllm.generator import EngineGenerator, Team
from mathcanvas_lightning.generation.bagel.vllm.memory import drawer_memory, engine_memory
from mathcanvas_lightning.generation.bagel.vllm.text_engine import ContextMaker, TextEngine
from mathcanvas_lightning.generation.bagel.workshop import (
    context_capacity,
    item_maker,
    open_workshop,
)
from mathcanvas_lightning.model.checkpoint import config_for_weights, find_weights
from mathcanvas_lightning.model.config import BagelConfig

MARGIN = 2
"""Tokens that the engine may add to a full context: the last token of a text, and the action."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class TextEngineConfig:
    """Settings of vLLM, which writes the texts."""

    tensor_parallel_size: int = 1
    """Number of GPUs that share each layer."""
    gpu_memory_utilization: float = 0.45
    """Share of each GPU's memory that vLLM may use, above 0, at most 1; the drawer needs about as
    much on its GPU."""
    engine_options: dict[str, Any] | None = None
    """More arguments of vLLM's engine, such as `enforce_eager` or `max_num_seqs`."""


class VLLMBagelBackend(BagelBackend):
    """Answers requests with BAGEL: vLLM writes all texts, the native steps draw.

    vLLM runs in a child process. A problem is written there or drawn here, never both, so with
    several problems in progress both sides are busy. A finished drawing enters vLLM's context as
    VAE latents and ViT patches; the prefix cache keeps what came before. The contexts of the drawer
    are read from the same tokens; they are kept for the next drawing, or read again if memory is
    short. Weights are held twice: by vLLM, and by the drawer without the text head. What both need
    is logged at the start. In the mode "understanding" there is no drawer.

    Greedy texts and drawings are those of `BagelBackend` in float32. Sampled texts differ from
    those of `BagelBackend`, because vLLM has its own random numbers; they are determined by the
    seed, the id of the request and the number of the step. A context has at most 2 tokens fewer
    than the maximum of the model.

    With GPUs, the drawer uses the Trainer's, and vLLM the same one: process N of a machine uses
    tensor_parallel_size GPUs from number N x tensor_parallel_size.

    Args:
        checkpoint: Directory in the layout of BAGEL-7B-MoT.
        model_name: Name in the journal; by default the name of the directory.
        mode: "interleaved": texts and drawings in turn, as the model chooses; "understanding":
            one text; "image": one drawing from a text, or from pictures to edit.
        think: If the request has no system prompt, add one that asks the model to think first.
        drawing: Settings for drawings.
        max_steps: Maximum number of texts in an answer; a drawing may follow each text.
        max_images: Maximum number of drawings in an answer.
        engine: Settings of vLLM.
        settings: Batch size, memory, precision and image sizes, see `BagelSettings`.

    Raises:
        ConfigError: If a setting is out of range or set twice, or weights are quantized.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        model_name: str | None = None,
        mode: Mode = "interleaved",
        think: bool = False,
        drawing: DrawingConfig = DrawingConfig(),
        max_steps: int = 10,
        max_images: int = 10,
        engine: TextEngineConfig = TextEngineConfig(),
        **settings: Unpack[BagelSettings],
    ) -> None:
        super().__init__(
            checkpoint,
            model_name=model_name,
            mode=mode,
            think=think,
            drawing=drawing,
            max_steps=max_steps,
            max_images=max_images,
            **settings,
        )
        if self._options.quantized is not None:
            raise ConfigError(
                "weights",
                found=f"{self._options.quantized}, with VLLMBagelBackend",
                wanted="auto or bf16: vLLM loads the weights itself, and would not quantize them",
                remedy="Use BagelBackend, or leave weights out.",
            )
        self.engine = engine
        self._new_engine("auto", None)  # checks the settings

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that change the answers, for the journal: JSON values."""
        options = journal_options(self.engine.engine_options or {})
        return {**super().settings, "text_engine": {"name": "vllm", "options": options}}

    def _new_engine(self, dtype: str, window: int | None) -> VLLMBackend:
        return VLLMBackend(
            self._checkpoint,
            model_name=self._model_name,
            tensor_parallel_size=self.engine.tensor_parallel_size,
            max_model_len=window,
            dtype=dtype,
            engine_options=self.engine.engine_options,
            gpu_memory_utilization=self.engine.gpu_memory_utilization,
        )

    def _load(self, device: torch.device, local_rank: int) -> ProblemSolver:
        weights = find_weights(self._checkpoint)
        config = config_for_weights(BagelConfig.from_directory(self._checkpoint), weights)
        dtype = self._options.torch_dtype(device)
        longest = config.llm.max_position_embeddings
        window = min(context_capacity(config, self._options.limits) + MARGIN, longest)
        engine = self._new_engine(str(dtype).removeprefix("torch."), window)
        engine.start(local_rank=local_rank)  # first: then the drawer knows the memory that is left
        share = self.engine.gpu_memory_utilization
        memory = [engine_memory(weights, dtype, self.engine.engine_options or {}, share)]
        try:
            client = cast("TextEngine", engine.client)
            team, used = self._team(config, client, device, capacity=window - MARGIN)
        except BaseException:
            engine.close()
            raise
        rank_zero_info(f"Memory: {'; '.join(memory + used)}.")
        reader = ProblemReader(
            team.contexts.maker,
            self._config,
            trained_size=config.drawing_size,
            capacity=window - MARGIN,
        )
        size = self._options.max_batch_size
        return EngineGenerator(team, reader, self._config, batch_size=size)

    def _team(
        self, config: BagelConfig, engine: TextEngine, device: torch.device, *, capacity: int
    ) -> tuple[Team, list[str]]:
        """Adds the drawer to the engine, if problems draw; also describes the drawer's memory."""
        options = self._options
        if self._mode == "understanding":
            maker = item_maker(config, TextTokenizer(self._checkpoint), options.images)
            contexts = ContextMaker(maker, None, config.latent_patch_size)
            return Team(engine=engine, drawer=None, contexts=contexts, device=device), []
        model, vae, tokenizer = self._load_parts(device, text_head=False)
        workshop = open_workshop(
            model,
            vae,
            tokenizer,
            num_contexts=self._config.drawing.num_contexts,
            limits=replace(options.limits, max_context_tokens=capacity),
            images=options.images,
        )
        contexts = ContextMaker(workshop.maker, vae, config.latent_patch_size)
        team = Team(engine=engine, drawer=Drawer(workshop), contexts=contexts, device=device)
        return team, [drawer_memory(vae, workshop)]
