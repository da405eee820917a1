"""What each element of a row becomes in the sequence, and how many tokens that is.

All rules of composition and of conditioning dropout stand here, once, and vectorised: planning a
million rows and building one pack run the same code. [E] elements, [N] rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.sequence.rng import CHOICE, DROP, DROP_VIT, EXTRA
from mathcanvas_lightning.errors import ConfigError

Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
SplitKind = Literal["text", "noisy", "clean", "vit"]

SPLITS: dict[Role, tuple[SplitKind, ...]] = {
    Role.UNUSED: (),
    Role.PROMPT_TEXT: ("text",),
    Role.ANSWER_TEXT: ("text",),
    Role.FIXED_TEXT: ("text",),
    Role.FIXED_ANSWER: ("text",),
    Role.CONTEXT_IMAGE: ("clean", "vit"),
    Role.DRAWN_IMAGE: ("noisy", "clean", "vit"),
    Role.TARGET_IMAGE: ("noisy",),
    Role.SEEN_IMAGE: ("vit",),
}
"""The splits of each role, in their order."""
DROPPABLE = frozenset({Role.PROMPT_TEXT, Role.ANSWER_TEXT, Role.CONTEXT_IMAGE, Role.DRAWN_IMAGE})
"""Roles whose text, clean latents and ViT image may be dropped; noisy latents never are."""
ANSWERS = frozenset({Role.ANSWER_TEXT, Role.FIXED_ANSWER})
"""Roles with a text loss."""
MARKERS = 2
"""Tokens around each split: bos and eos, or vision start and end."""
MAX_EDIT_STEPS = 2

_HAS = {
    kind: np.array([kind in SPLITS[role] for role in Role])
    for kind in ("text", "noisy", "clean", "vit")
}
_ANSWERS = np.array([role in ANSWERS for role in Role])
_DROPPABLE = np.array([role in DROPPABLE for role in Role])


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class DropoutConfig:
    """Probabilities of dropping a condition, for classifier-free guidance."""

    text: float = 0.1
    """Of each text of an interleaved, t2i or edit row, with its loss."""
    vit: float = 0.1
    """Of each image of these rows for the ViT."""
    vae: float = 0.1
    """Of each clean image of these rows for the VAE."""

    def __post_init__(self) -> None:
        """Checks the probabilities.

        Raises:
            ConfigError: If one is outside 0..1.
        """
        for name in ("text", "vit", "vae"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"dropout.{name}",
                    found=str(getattr(self, name)),
                    wanted="a probability from 0 to 1",
                    remedy="The published recipes use 0.1.",
                )


NO_DROPOUT = DropoutConfig(text=0.0, vit=0.0, vae=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """The elements of consecutive rows, as numbers alone."""

    offsets: Ints
    """[N + 1] where each row begins."""
    roles: Ints
    """[E] int8, as they stand in the rows."""
    steps: Ints
    """[E] int16, of edits."""
    text_tokens: Ints
    """[E] int32, ids of a text; 0 for images."""
    latent_tokens: Ints
    """[E] int32, of an image for the VAE; 0 for texts."""
    vit_tokens: Ints
    """[E] int32, of an image for the ViT; 0 for texts."""

    def rows(self, start: int, stop: int) -> "Elements":
        """Those of some consecutive rows."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Elements(
            offsets=self.offsets[start : stop + 1] - first,
            roles=self.roles[first:last],
            steps=self.steps[first:last],
            text_tokens=self.text_tokens[first:last],
            latent_tokens=self.latent_tokens[first:last],
            vit_tokens=self.vit_tokens[first:last],
        )


def assign_roles(row_format: RowFormat, elements: Elements, draws: Floats) -> Ints:
    """Draws what is used of each row, and as what.

    Args:
        row_format: Of the rows.
        elements: Of the rows; none is empty.
        draws: [E, 4] of the elements.

    Returns:
        [E] int8 roles.
    """
    if row_format in ("interleaved", "vlm"):
        return elements.roles
    used = _one_of_each(elements, draws[:, CHOICE])
    if row_format == "t2i":
        return np.where(used, elements.roles, Role.UNUSED).astype(np.int8)
    first = elements.offsets[:-1]
    num_images = np.maximum.reduceat(elements.steps, first).astype(np.int64) + 1
    start = _below(draws[first, CHOICE], num_images - 1)
    end = (
        start + 1 + _below(draws[first, EXTRA], np.minimum(num_images - 1 - start, MAX_EDIT_STEPS))
    )
    return _edit_roles(elements, used, start, end)


def dropped(roles: Ints, draws: Floats, dropout: DropoutConfig) -> tuple[Bools, Bools]:
    """Which conditions are dropped.

    Args:
        roles: [E] as assigned.
        draws: [E, 4] of the elements.
        dropout: The probabilities.

    Returns:
        [E] whether the text or the clean latents are dropped, [E] whether the ViT image is.
    """
    probability = np.where(_HAS["text"][roles], dropout.text, dropout.vae)
    droppable = _DROPPABLE[roles]
    return (
        droppable & (draws[:, DROP] < probability),
        droppable & (draws[:, DROP_VIT] < dropout.vit),
    )


def packed_lengths(
    elements: Elements, roles: Ints, drop: Bools | None = None, drop_vit: Bools | None = None
) -> Ints:
    """Tokens that each row takes in a pack, markers included.

    Args:
        elements: Of the rows; none is empty.
        roles: [E] as assigned.
        drop: [E] texts and clean latents that are left out, None for none.
        drop_vit: [E] ViT images that are left out, None for none.

    Returns:
        [N] int64.
    """
    keep = np.True_ if drop is None else ~drop
    keep_vit = np.True_ if drop_vit is None else ~drop_vit
    text = _HAS["text"][roles] * (elements.text_tokens + MARKERS) * keep
    latents = _HAS["noisy"][roles].astype(np.int64) + (_HAS["clean"][roles] & keep)
    vit = _HAS["vit"][roles] * (elements.vit_tokens + MARKERS) * keep_vit
    tokens = text + latents * (elements.latent_tokens + MARKERS) + vit
    return np.add.reduceat(tokens.astype(np.int64), elements.offsets[:-1])


def loss_totals(elements: Elements, roles: Ints, drop: Bools) -> Floats:
    """What each row adds to the denominators of the losses.

    Args:
        elements: Of the rows; none is empty.
        roles: [E] as assigned.
        drop: [E] texts and clean latents that are left out.

    Returns:
        [N, 4] in the order of `LossTotals`: text tokens, their weights 1 / sqrt(n), their weights
        1 / n, latent tokens.
    """
    answers = _ANSWERS[roles] & ~drop
    tokens = answers * (elements.text_tokens + 1.0)  # each id, and the end
    actions = answers & (roles == Role.ANSWER_TEXT)
    latents = _HAS["noisy"][roles] * elements.latent_tokens
    columns = (tokens + actions, np.sqrt(tokens) + actions, answers * 1.0 + actions, latents)
    return np.add.reduceat(np.stack(columns, axis=1), elements.offsets[:-1], axis=0)


def longest_lengths(row_format: RowFormat, elements: Elements) -> Ints:
    """The most tokens that each row can take, whatever is drawn.

    Args:
        row_format: Of the rows.
        elements: Of the rows; none is empty.

    Returns:
        [N] int64.
    """
    if row_format in ("interleaved", "vlm"):
        return packed_lengths(elements, elements.roles)
    used = _longest_of_each(elements)
    if row_format == "t2i":
        return packed_lengths(elements, np.where(used, elements.roles, Role.UNUSED))
    last = np.maximum.reduceat(elements.steps, elements.offsets[:-1]).astype(np.int64)
    longest = np.zeros(len(last), np.int64)
    for start in range(int(last.max())):
        for steps in range(1, MAX_EDIT_STEPS + 1):
            first = np.minimum(start, last - 1)
            roles = _edit_roles(elements, used, first, np.minimum(first + steps, last))
            longest = np.maximum(longest, packed_lengths(elements, roles))
    return longest


def _edit_roles(elements: Elements, used: Bools, start: Ints, end: Ints) -> Ints:
    """Roles in edits that go from image `start` to image `end`, both [N]."""
    counts = np.diff(elements.offsets)
    start, end = np.repeat(start, counts), np.repeat(end, counts)
    steps, text = elements.steps, elements.roles == Role.PROMPT_TEXT
    inside = (steps > start) & (steps < end)
    roles = np.full(len(steps), Role.UNUSED, np.int8)
    roles[~text & (steps == start)] = Role.CONTEXT_IMAGE
    roles[~text & inside] = Role.DRAWN_IMAGE
    roles[~text & (steps == end)] = Role.TARGET_IMAGE
    roles[text & used & (inside | (steps == end))] = Role.PROMPT_TEXT
    return roles


def _groups(elements: Elements) -> tuple[Ints, Ints]:
    """Where runs of alternatives begin, and how many each has; an image is a run of its own."""
    text = elements.roles == Role.PROMPT_TEXT
    same = np.zeros(len(text), bool)
    same[1:] = text[1:] & text[:-1] & (elements.steps[1:] == elements.steps[:-1])
    same[elements.offsets[:-1]] = False
    starts = np.flatnonzero(~same)
    return starts, np.diff(np.append(starts, len(text)))


def _one_of_each(elements: Elements, choice: Floats) -> Bools:
    starts, counts = _groups(elements)
    used = np.zeros(len(elements.roles), bool)
    used[starts + _below(choice[starts], counts)] = True
    return used


def _longest_of_each(elements: Elements) -> Bools:
    starts, counts = _groups(elements)
    longest = np.repeat(np.maximum.reduceat(elements.text_tokens, starts), counts)
    candidates = np.flatnonzero(elements.text_tokens == longest)
    group = np.repeat(np.arange(len(starts)), counts)[candidates]
    used = np.zeros(len(elements.roles), bool)
    used[candidates[np.unique(group, return_index=True)[1]]] = True
    return used


def _below(uniform: Floats, count: Ints) -> Ints:
    """Whole numbers from 0 to count - 1, as uniform draws in [0, 1) choose them."""
    return np.minimum((uniform * count).astype(np.int64), count - 1)
