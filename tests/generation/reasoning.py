"""A checkpoint that draws within its answers without being trained for it, and puzzles."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from mathcanvas_lightning.blockmoving.generate import generate_blockmoving
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.demo.new_bagel import make_bagel

STRENGTH, FACTOR = 20.0, 2.0
TRANSFORMS = {
    "vae_transform": ImageTransform(max_image_size=96, min_image_size=48, image_stride=16),
    "vit_transform": ImageTransform(max_image_size=112, min_image_size=56, image_stride=14),
}
"""Sizes that the shipped model was trained with."""


def drawing_checkpoint(folder: Path) -> Path:
    """The shipped model, which describes puzzles, changed so that it often draws after a text.

    The embedding of the end token is replaced by a large vector in the direction of the head's row
    for "draw". So the hidden state after a text is mostly this vector.
    """
    make_bagel(str(folder), pretrained=True)
    path, special = folder / "ema.safetensors", TextTokenizer(str(folder)).special
    weights = load_file(path)
    row = weights["language_model.lm_head.weight"][special.start_of_image]
    embedding = weights["language_model.model.embed_tokens.weight"][special.eos]
    embedding.copy_(row / row.norm() * STRENGTH)
    row *= FACTOR
    save_file(weights, path)
    return folder


def puzzle_records(folder: Path, number: int) -> list[dict[str, Any]]:
    """Questions with pictures in a folder."""
    generate_blockmoving(
        str(folder), num_tasks=number, seed=2, level=1, part="test", num_workers=0, progress=False
    )
    return [
        {
            "sample_index": n,
            "query_cot": f"<image> Puzzle {n}: which block moved?",
            "image": f"task_{n}/composite.png",
        }
        for n in range(number)
    ]
