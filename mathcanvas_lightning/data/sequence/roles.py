"""The splits of each element of a row, and their numbers of tokens.

Contains all rules of composition and of conditioning dropout, vectorised: planning a million rows
and building one pack run the same code. [E] elements, [N] rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.sequence.rng import CHOICE, DROP, DROP_VIT, EXTRA
from mathcanvas_lightning.errors import check_settings

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
"""The splits of each role, in order."""
DROPPABLE = frozenset({Role.PROMPT_TEXT, Role.ANSWER_TEXT, Role.CONTEXT_IMAGE, Role.DRAWN_IMAGE})
"""Roles whose text, clean latents and ViT image may be dropped. Noisy latents are never dropped."""
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
    """Probabilities of dropping conditions, for classifier-free guidance."""

    text: float = 0.1
    """Probability per text of an interleaved, t2i or edit row; its loss is dropped too."""
    vit: float = 0.1
    """Probability per ViT image of these rows."""
    vae: float = 0.1
    """Probability per clean VAE image of these rows."""

    def __post_init__(self) -> None:
        """Checks the probabilities.

        Raises:
            ConfigError: If one is outside 0..1.
        """
        check_settings(
            *(
                (f"dropout.{name}", value, 0 <= value <= 1, "a probability from 0 to 1")
                for name, value in (("text", self.text), ("vit", self.vit), ("vae", self.vae))
            ),
            remedy="The published recipes use 0.1.",
        )


NO_DROPOUT = DropoutConfig(text=0.0, vit=0.0, vae=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """The elements of consecutive rows as numbers."""

    offsets: Ints
    """[N + 1] first element of each row."""
    roles: Ints
    """[E] int8, roles as read from the rows."""
    steps: Ints
    """[E] int16, steps of edits."""
    text_tokens: Ints
    """[E] int32, tokens of a text; 0 for images."""
    latent_tokens: Ints
    """[E] int32, latent tokens of an image; 0 for texts."""
    vit_tokens: Ints
    """[E] int32, ViT tokens of an image; 0 for texts."""

    def rows(self, start: int, stop: int) -> "Elements":
        """The elements of rows `start` to `stop` - 1."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Elements(
            offsets=self.offsets[start : stop + 1] - first,
            roles=self.roles[first:last],
            steps=self.steps[first:last],
            text_tokens=self.text_tokens[first:last],
            latent_tokens=self.latent_tokens[first:last],
            vit_tokens=self.vit_tokens[first:last],
        )

    def repeated(self, times: int) -> "Elements":
        """All rows, several times in a row."""
        if times == 1:
            return self
        return Elements(
            offsets=np.concatenate([[0], np.cumsum(np.tile(np.diff(self.offsets), times))]),
            roles=np.tile(self.roles, times),
            steps=np.tile(self.steps, times),
            text_tokens=np.tile(self.text_tokens, times),
            latent_tokens=np.tile(self.latent_tokens, times),
            vit_tokens=np.tile(self.vit_tokens, times),
        )


def assign_roles(row_format: RowFormat, elements: Elements, uniforms: Floats) -> Ints:
    """Chooses which elements of each row are used, and assigns their roles.

    Args:
        row_format: Format of the rows.
        elements: Elements of the rows; no row is empty.
        uniforms: [E, 4] random numbers of the elements, see `element_uniforms`.

    Returns:
        [E] int8 roles.
    """
    if row_format in ("interleaved", "vlm"):
        return elements.roles
    used = _one_of_each(elements, uniforms[:, CHOICE])
    if row_format == "t2i":
        return np.where(used, elements.roles, Role.UNUSED).astype(np.int8)
    first = elements.offsets[:-1]
    num_images = np.maximum.reduceat(elements.steps, first).astype(np.int64) + 1
    start = _below(uniforms[first, CHOICE], num_images - 1)
    max_steps = np.minimum(num_images - 1 - start, MAX_EDIT_STEPS)
    end = start + 1 + _below(uniforms[first, EXTRA], max_steps)
    return _edit_roles(elements, used, start, end)


def find_dropped(roles: Ints, uniforms: Floats, dropout: DropoutConfig) -> tuple[Bools, Bools]:
    """Finds the conditions that are dropped.

    Args:
        roles: [E] assigned roles.
        uniforms: [E, 4] random numbers of the elements, see `element_uniforms`.
        dropout: The probabilities.

    Returns:
        [E] whether the text or the clean latents are dropped, [E] whether the ViT image is.
    """
    probability = np.where(_HAS["text"][roles], dropout.text, dropout.vae)
    droppable = _DROPPABLE[roles]
    return (
        droppable & (uniforms[:, DROP] < probability),
        droppable & (uniforms[:, DROP_VIT] < dropout.vit),
    )


def packed_lengths(
    elements: Elements, roles: Ints, drop: Bools | None = None, drop_vit: Bools | None = None
) -> Ints:
    """Number of tokens of each row in a pack, markers included.

    Args:
        elements: Elements of the rows; no row is empty.
        roles: [E] assigned roles.
        drop: [E] whether the text or the clean latents are dropped; None: nothing is dropped.
        drop_vit: [E] whether the ViT image is dropped; None: nothing is dropped.

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
    """Contribution of each row to the denominators of the losses.

    Args:
        elements: Elements of the rows; no row is empty.
        roles: [E] assigned roles.
        drop: [E] whether the text or the clean latents are dropped.

    Returns:
        [N, 4] in the order of `LossTotals`: text tokens, sum of their weights 1 / sqrt(n), sum of
        their weights 1 / n, latent tokens.
    """
    answers = _ANSWERS[roles] & ~drop
    tokens = answers * (elements.text_tokens + 1.0)  # each id, and the end token
    actions = answers & (roles == Role.ANSWER_TEXT)
    latents = _HAS["noisy"][roles] * elements.latent_tokens
    columns = (tokens + actions, np.sqrt(tokens) + actions, answers * 1.0 + actions, latents)
    return np.add.reduceat(np.stack(columns, axis=1), elements.offsets[:-1], axis=0)


def longest_lengths(row_format: RowFormat, elements: Elements) -> Ints:
    """Maximum number of tokens of each row, over all random choices.

    Args:
        row_format: Format of the rows.
        elements: Elements of the rows; no row is empty.

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
    """Roles of edits from image `start` to image `end`, both [N]."""
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
    """Start and size of each group of alternatives; an image is a group of one."""
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
    """Maps uniform numbers in [0, 1) to integers from 0 to count - 1."""
    return np.minimum((uniform * count).astype(np.int64), count - 1)
