"""Parts of the network by which learning rates are set and gradients are logged."""

from typing import Literal, get_args

from mathcanvas_lightning.model.config import GEN_SUFFIX

Part = Literal["und", "gen", "vit", "connector", "head"]
PARTS: tuple[Part, ...] = get_args(Part)
"""The understanding expert with the text embeddings, the generation expert with its inputs and
outputs, the image encoder, the connector, and the head for texts."""
_FIRST_NAMES: dict[str, Part] = {
    "vit_model": "vit",
    "vit_pos_embed": "connector",
    "connector": "connector",
    "time_embedder": "gen",
    "vae2llm": "gen",
    "llm2vae": "gen",
    "latent_pos_embed": "gen",
}


def part_of(name: str) -> Part:
    """Returns the part to which a parameter belongs; an adapter belongs to that of its projection.

    Args:
        name: Name of a parameter of `Bagel`.
    """
    first = name.split(".")[0]
    if first != "language_model":
        return _FIRST_NAMES[first]
    if "lm_head" in name:
        return "head"
    return "gen" if GEN_SUFFIX in name else "und"
