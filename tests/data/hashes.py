"""Micro-batches as hashes of all their tensors, to compare runs."""

import dataclasses
import hashlib
from collections.abc import Iterable

import torch

from mathcanvas_lightning.batch import MicroBatch


def digest(batch: MicroBatch) -> str:
    """Hash of everything in a micro-batch except its epoch and step."""
    found = hashlib.sha256(repr((batch.samples, batch.image_seeds, batch.step_totals)).encode())
    for member in dataclasses.fields(batch.pack):
        value = getattr(batch.pack, member.name)
        tensors = value if member.name == "images" else (value,)
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                found.update(tensor.numpy().tobytes())
            else:
                found.update(repr(tensor).encode())
    return found.hexdigest()


def by_step(batches: Iterable[MicroBatch]) -> dict[tuple[int, int], list[str]]:
    """(epoch, step) -> sorted digests of its micro-batches."""
    steps: dict[tuple[int, int], list[str]] = {}
    for batch in batches:
        steps.setdefault((batch.epoch, batch.step), []).append(digest(batch))
    return {key: sorted(found) for key, found in steps.items()}


def uids(batches: Iterable[MicroBatch]) -> list[str]:
    """Ids of all samples that are not holes."""
    return [s.uid for batch in batches for s in batch.samples if not s.is_hole]
