"""From a row to the splits of its sequence: kinds, losses, actions, what is dropped.

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
    dropped,
)
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens

_IMAGES = frozenset(role for role, kinds in SPLITS.items() if kinds and kinds != ("text",))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSplit:
    """One split of a row's sequence."""

    kind: SplitKind
    """A text, or an image as noisy latents, clean latents or ViT patches."""
    element: int
    """Which element of the row it shows."""
    droppable: bool
    """Whether conditioning dropout may leave it out."""
    dropped: bool = False
    """Whether it is left out this time."""
    loss: bool = False
    """Whether its tokens are learned."""
    action_id: int | None = None
    """The token that its end predicts: draw next, write on, or stop."""
    timestep_logit: float = 0.0
    """Of noisy latents: the normal draw that becomes the timestep."""


def plan_sequence(
    row_format: RowFormat,
    elements: Elements,
    draws: Floats,
    dropout: DropoutConfig,
    special: SpecialTokens,
) -> tuple[PlannedSplit, ...]:
    """Plans one row.

    Args:
        row_format: Of the row.
        elements: Of this one row.
        draws: [E, 4] of its elements.
        dropout: The probabilities.
        special: Ids of the actions.

    Returns:
        Its splits in order, those dropped included.
    """
    roles = [Role(role) for role in assign_roles(row_format, elements, draws)]
    drop, drop_vit = dropped(np.array(roles), draws, dropout)
    actions = _actions(roles, special)
    splits = []
    for index, role in enumerate(roles):
        for kind in SPLITS[role]:
            noisy = kind == "noisy"
            droppable = role in DROPPABLE and not noisy
            gone = drop_vit[index] if kind == "vit" else drop[index]
            splits.append(
                PlannedSplit(
                    kind=kind,
                    element=index,
                    droppable=droppable,
                    dropped=droppable and bool(gone),
                    loss=noisy or role in ANSWERS,
                    action_id=actions[index],
                    timestep_logit=normal(draws[index, EXTRA]) if noisy else 0.0,
                )
            )
    return tuple(splits)


def _actions(roles: Sequence[Role], special: SpecialTokens) -> list[int | None]:
    """What the end of each element predicts; fixed on the row as it stands, before any dropout."""
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
