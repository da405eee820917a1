"""Random packs of any composition."""

import torch
from torch import Tensor

from mathcanvas_lightning.batch import PackedBatch, make_splits
from mathcanvas_lightning.model.config import BagelConfig

TENSORS = (
    "position_ids",
    "text_ids",
    "text_indexes",
    "vit_patches",
    "vit_position_ids",
    "vit_indexes",
    "latent_position_ids",
    "latent_indexes",
    "timestep_logits",
    "ce_indexes",
    "ce_label_ids",
    "mse_indexes",
)
KINDS = ("question", "answer", "vit", "clean", "noisy")


def random_pack(
    samples: list[list[str]], config: BagelConfig, *, seed: int = 0, side: int = 3
) -> PackedBatch:
    """A pack whose samples are lists of `KINDS`; sizes and contents are drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    lens: list[int] = []
    lists: dict[str, list[Tensor]] = {name: [] for name in TENSORS}
    split_lens, modes, vit_lens, shapes, images = [], [], [], [], []

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape or (1,), generator=generator)

    start = 0
    for sample in samples:
        position = 0
        first = start
        for kind in sample:
            rows, columns = (int(n) + 1 for n in draw(side, 2))
            if kind in ("question", "answer"):
                length = int(draw(8)) + 2
                text_at = torch.arange(start, start + length)
                positions = position + torch.arange(length)
                position += length
                if kind == "answer":
                    lists["ce_indexes"].append(text_at)
                    lists["ce_label_ids"].append(draw(config.llm.vocab_size, length))
            else:
                length = rows * columns + 2
                text_at = torch.tensor([start, start + length - 1])
                inner = torch.arange(start + 1, start + length - 1)
                positions = torch.full((length,), position)
                position += kind != "noisy"
            if kind == "vit":
                grid = config.vit_max_num_patch_per_side
                vit_lens.append(rows * columns)
                lists["vit_indexes"].append(inner)
                lists["vit_position_ids"].append(table_ids(rows, columns, grid))
                patches = torch.randn(rows * columns, config.vit.patch_dim, generator=generator)
                lists["vit_patches"].append(patches)
            elif kind in ("clean", "noisy"):
                shapes.append((rows, columns))
                pixels = config.geometry.latent_patch_px
                images.append(
                    torch.rand(3, rows * pixels, columns * pixels, generator=generator) * 2 - 1
                )
                lists["latent_indexes"].append(inner)
                lists["latent_position_ids"].append(
                    table_ids(rows, columns, config.max_latent_size)
                )
                logit = torch.randn(1, generator=generator).expand(rows * columns)
                clean = torch.full((rows * columns,), -torch.inf)
                lists["timestep_logits"].append(logit if kind == "noisy" else clean)
                if kind == "noisy":
                    lists["mse_indexes"].append(inner)
            lists["text_ids"].append(draw(config.llm.vocab_size, len(text_at)))
            lists["text_indexes"].append(text_at)
            lists["position_ids"].append(positions)
            split_lens.append(length)
            modes.append({"vit": "full", "clean": "full", "noisy": "noise"}.get(kind, "causal"))
            start += length
        lens.append(start - first)
    empty = {
        "vit_patches": torch.empty(0, config.vit.patch_dim),
        "timestep_logits": torch.empty(0),
    }
    tensors = {
        name: torch.cat(parts) if parts else empty.get(name, torch.empty(0, dtype=torch.int64))
        for name, parts in lists.items()
    }
    return PackedBatch(
        sample_lens=tuple(lens),
        splits=make_splits(split_lens, modes),
        vit_lens=tuple(vit_lens),
        latent_shapes=tuple(shapes),
        latent_image_ids=tuple(range(len(shapes))),
        images=tuple(images),
        ce_weights=torch.ones(len(tensors["ce_indexes"])),
        **tensors,
    )


def table_ids(rows: int, columns: int, side: int) -> Tensor:
    """Ids in a position table of a grid in its corner."""
    return (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()


def random_inputs(batch: PackedBatch, config: BagelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Latents, noise and times for a pack."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(batch.latent_indexes), config.latent_dim)
    return {
        "latents": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "timesteps": torch.sigmoid(batch.timestep_logits),
    }
