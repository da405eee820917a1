"""What the plan of a run depends on, by topic: a hash to compare, and values to show."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.common.keys import flatten
from mathcanvas_lightning.data.loading.config import DataSettings, TokenBudget
from mathcanvas_lightning.data.loading.loaded_dataset import LoadedDataset
from mathcanvas_lightning.data.plan.origin import DATASET_TOPIC, PlanOrigin
from mathcanvas_lightning.data.sequence.rng import hash64
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer

MAX_CHARACTERS = 80
"""A longer value is cut in a checkpoint; the hash covers all of it."""
_NOT_PLANNED = ("path", "name", "image_dir")
"""Fields of a data set that say where it lies and how it is called."""


def plan_origin(
    datasets: Sequence[LoadedDataset],
    *,
    seed: int,
    budget: TokenBudget,
    geometry: TokenGeometry,
    tokenizer: TextTokenizer,
    settings: DataSettings,
) -> PlanOrigin:
    """Collects what the plan of a run depends on.

    Args:
        datasets: Data sets of the training.
        seed: Seed of the order and of all random numbers.
        budget: Maximum lengths of packs and samples.
        geometry: Patch sizes and position tables of the model.
        tokenizer: The tokenizer.
        settings: The other settings.
    """
    lengths = budget.max_num_tokens, budget.max_num_tokens_per_sample
    labels = [data.config.label for data in datasets]
    is_spread, dropout, limits = (
        settings.interpolate_positions,
        settings.dropout,
        settings.image_limits,
    )
    # The topics and the order of their values are part of the hashes of earlier checkpoints.
    topics: dict[str, tuple[object, dict[str, object]]] = {
        "seed": (seed, {"data.seed": seed}),
        "tokenizer": (
            tokenizer.digest,
            {"data.tokenizer": f"{tokenizer.folder} (digest {tokenizer.digest})"},
        ),
        "packing": (
            lengths,
            {
                "data.max_num_tokens": lengths[0],
                "data.max_num_tokens_per_sample": lengths[1],
            },
        ),
        "dropout": (dropout, _named("data.dropout", dropout)),
        "geometry": (
            (geometry, is_spread),
            {**_named("geometry of the model", geometry), "data.interpolate_positions": is_spread},
        ),
        "order of data.train": (labels, {"names in data.train": ", ".join(labels)}),
        "image_limits": (limits, _named("data.image_limits", limits)),
        "numpy": (np.__version__, {"numpy": np.__version__}),
        **{f"{DATASET_TOPIC}{d.config.label}": (d.fingerprint, _of_dataset(d)) for d in datasets},
    }
    return PlanOrigin(
        fingerprint={t: f"{hash64(part) & 0xFFFFFFFF:08x}" for t, (part, _) in topics.items()},
        values={t: {n: _short(v) for n, v in named.items()} for t, (_, named) in topics.items()},
    )


def _of_dataset(data: LoadedDataset) -> dict[str, object]:
    label, config = data.config.label, data.config
    named = {
        f"{name} of the data set {label}": value
        for name, value in flatten(asdict(config))
        if name not in _NOT_PLANNED
    }
    contents = f"{data.num_indexed} rows (digest {data.index.digest[:8]})"
    return {**named, f"contents of the data set {label}": contents}


def _named(prefix: str, values: object) -> dict[str, object]:
    fields = asdict(values)  # type: ignore[call-overload]
    return dict(flatten(fields, f"{prefix}."))


def _short(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
