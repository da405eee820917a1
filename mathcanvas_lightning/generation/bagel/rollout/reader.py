"""Reads problems: inputs become items, and must fit into a context."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.bagel.contexts import Item, ItemMaker, opaque
from mathcanvas_lightning.generation.bagel.problem import InterleavedConfig, Problem, TooLongError
from mathcanvas_lightning.generation.bagel.rollout.state import Rollout
from mathcanvas_lightning.generation.requests import GIVEN_DRAWINGS

SHORTEST_TEXT = 3
"""Minimum length of a text in tokens: start token, one token, end token."""


class ProblemReader:
    """Turns problems into rollouts.

    Args:
        maker: Converts texts and pictures to items.
        trained_size: Width and height of the drawings that the model was trained to draw, if known.
        config: Configuration of problems that have none; no problem may need more contexts.
        capacity: Maximum length of a context, in tokens.
    """

    def __init__(
        self,
        maker: ItemMaker,
        config: InterleavedConfig,
        *,
        trained_size: tuple[int, int] | None,
        capacity: int,
    ) -> None:
        self._maker, self._config = maker, config
        self._trained_size, self._capacity = trained_size, capacity

    def read(self, problem: Problem) -> Rollout:
        """Reads the inputs of a problem.

        Raises:
            InputError: If there is no input, or an input is unreadable or too long for a context.
            ConfigError: If its configuration needs more contexts than that of the solver.
        """
        config = problem.config or self._config
        needed, available = config.drawing.num_contexts, self._config.drawing.num_contexts
        if problem.mode != "understanding" and needed > available:
            raise ConfigError(
                f"drawing of problem {problem.uid}",
                found=f"guidance with {needed} contexts",
                wanted=f"at most the {available} of the generator's configuration",
                remedy="Give the generator a configuration with the same guidance.",
            )
        items = self._read_inputs(problem)
        if config.drawings in GIVEN_DRAWINGS:
            problem = replace(problem, drawings=self._read_drawings(problem))
        size = self._drawing_size(items, config)
        self._check_room(problem, items, size)
        return Rollout(
            problem,
            config,
            inputs=items,
            size_px=size,
            capacity=self._capacity,
            maker=self._maker,
        )

    def _read_inputs(self, problem: Problem) -> list[Item]:
        # Empty texts are skipped, as in training.
        inputs = [part for part in problem.inputs if not isinstance(part, str) or part.strip()]
        opening = [text for text in [problem.opening] if text and text.strip()]
        if not inputs:
            raise InputError(
                f"problem {problem.uid}",
                found="no input",
                wanted="a text that is not empty, or a picture",
                remedy="Add a question.",
            )
        for_vae = problem.mode != "understanding"
        items = []
        for given in (*opening, *inputs):
            if isinstance(given, str):
                items.append(self._maker.text(given))
            else:
                items.append(self._maker.image(opaque(given, problem.uid), for_vae=for_vae))
        return items

    def _read_drawings(self, problem: Problem) -> tuple[Image.Image, ...]:
        """Checks the drawings that are given, so that none fails in the middle of an answer."""
        if problem.drawings is None:
            raise InputError(
                f"problem {problem.uid}",
                found="no drawings",
                wanted="those of a record, as the setting drawings asks for",
                remedy="Answer the records with mathcanvas predict, or set drawings: own.",
            )
        drawings = tuple(opaque(drawing, problem.uid) for drawing in problem.drawings)
        for drawing in drawings:
            self._maker.image_tokens(drawing.size)
        return drawings

    def _drawing_size(self, items: Sequence[Item], config: InterleavedConfig) -> tuple[int, int]:
        """Size of a problem's drawings, rounded to multiples of a token's side."""
        sizes = [item.size_px for item in items if item.size_px is not None]
        chosen = config.drawing.size or self._trained_size
        if chosen is None and sizes:
            return sizes[-1]
        side = self._maker.geometry.latent_patch_px
        width, height = (
            max(length // side, 1) * side for length in chosen or config.drawing.default_size
        )
        return width, height

    def _check_room(self, problem: Problem, items: Sequence[Item], size: tuple[int, int]) -> None:
        drawing = 0 if problem.mode == "understanding" else self._maker.drawing_tokens(size)
        if problem.mode == "interleaved":
            self._maker.image_tokens(size)  # raises if the model could not read the drawing again
        needed = sum(item.num_tokens for item in items)
        needed += drawing if problem.mode == "image" else SHORTEST_TEXT
        if needed > self._capacity:
            raise TooLongError(
                f"problem {problem.uid}",
                found=f"{needed} tokens for the question and the shortest answer",
                wanted=f"at most {self._capacity}, the length of a context",
                remedy="Raise max_context_tokens, or use fewer or smaller pictures.",
            )
