"""Plans the splits of a row: kinds, losses, actions and dropped conditions.

Rules follow the public reference (interleave_reason_dataset, edit_dataset, t2i_dataset
and vlm_dataset of BAGEL and its MathCanvas branch).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.sequence.rng import EXTRA, normal
from mathcanvas_lightning.data.sequence.roles import (
    ANSWERS,
    DROPPABLE,
    SPLITS,
    DropoutConfig,
    Elements,
    Floats,
    SplitKind,
    assign_roles,
    find_dropped,
)
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens

_IMAGES = frozenset(role for role, kinds in SPLITS.items() if kinds and kinds != ("text",))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSplit:
    """A split of a row's sequence."""

    kind: SplitKind
    """A text, or an image as noisy latents, clean latents or ViT patches."""
    element: int
    """Number of the row's element that it contains."""
    droppable: bool
    """Whether conditioning dropout may drop it."""
    dropped: bool = False
    """Whether it is dropped in this visit."""
    loss: bool = False
    """Whether its tokens have a loss."""
    action_id: int | None = None
    """Token to predict at its end: start an image, start a text, or end the answer."""
    timestep_logit: float = 0.0
    """Standard normal number behind the timestep; only of noisy latents."""


def plan_sequence(
    row_format: RowFormat,
    elements: Elements,
    uniforms: Floats,
    dropout: DropoutConfig,
    special: SpecialTokens,
) -> tuple[PlannedSplit, ...]:
    """Plans one row.

    Args:
        row_format: Format of the row.
        elements: Elements of this row only.
        uniforms: [E, 4] random numbers of the elements, see `element_uniforms`.
        dropout: Probabilities of dropping conditions.
        special: Ids of the actions.

    Returns:
        The splits in order, dropped ones included.
    """
    roles = [Role(role) for role in assign_roles(row_format, elements, uniforms)]
    drop, drop_vit = find_dropped(np.array(roles), uniforms, dropout)
    actions = _actions(roles, special)
    splits = []
    for index, role in enumerate(roles):
        for kind in SPLITS[role]:
            noisy = kind == "noisy"
            droppable = role in DROPPABLE and not noisy
            is_dropped = drop_vit[index] if kind == "vit" else drop[index]
            splits.append(
                PlannedSplit(
                    kind=kind,
                    element=index,
                    droppable=droppable,
                    dropped=droppable and bool(is_dropped),
                    loss=noisy or role in ANSWERS,
                    action_id=actions[index],
                    timestep_logit=normal(uniforms[index, EXTRA]) if noisy else 0.0,
                )
            )
    return tuple(splits)


def _actions(roles: Sequence[Role], special: SpecialTokens) -> list[int | None]:
    """Token to predict at the end of each element; computed before dropout."""
    actions: list[int | None] = []
    for index, role in enumerate(roles):
        following = roles[index + 1] if index + 1 < len(roles) else None
        if role != Role.ANSWER_TEXT:
            actions.append(None)
        elif following is None:
            actions.append(special.end_of_text)
        else:
            actions.append(special.start_of_image if following in _IMAGES else special.bos)
    return actions
