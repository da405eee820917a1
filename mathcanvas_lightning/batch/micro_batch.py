"""One rank's pack, with everything that a training step needs."""

from dataclasses import dataclass, replace
from html import escape

import torch

from mathcanvas_lightning.batch.pack import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfo:
    """Origin of a sample in a pack."""

    uid: str
    """Id, unique within the data set."""
    dataset: str
    """Name of the data set."""
    num_tokens: int
    """Number of its tokens in the pack."""
    is_hole: bool = False
    """Whether padding replaces the sample, because it was unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTotals:
    """Denominators of the losses: numbers of tokens, or sums of weights."""

    ce_tokens: int = 0
    """Number of positions with a text loss."""
    ce_square: float = 0.0
    """Sum of their weights 1 / sqrt(n); n is the number of tokens of the text."""
    ce_sample: float = 0.0
    """Sum of their weights 1 / n."""
    mse_tokens: int = 0
    """Number of latent tokens with a drawing loss."""

    @classmethod
    def of(cls, pack: PackedBatch) -> "LossTotals":
        """The denominators of one pack."""
        return cls(
            ce_tokens=len(pack.ce_indexes),
            ce_square=float(pack.ce_weights.sum(dtype=torch.float64)),
            ce_sample=float(pack.ce_weights.double().square().sum()),
            mse_tokens=len(pack.mse_indexes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One rank's pack, with everything that a training step needs."""

    pack: PackedBatch
    """The packed tokens."""
    samples: tuple[SampleInfo, ...]
    """Origin of each sample; empty for a filler."""
    image_seeds: tuple[int, ...]
    """Seed of the noise of each of `pack.images`, equal on all ranks and in all runs."""
    step_totals: LossTotals
    """Planned totals of this optimizer step, over the packs of all ranks, holes included."""
    epoch: int
    """Epoch, from 0."""
    step: int
    """Optimizer step within the epoch, from 0."""

    def __repr__(self) -> str:
        return f"MicroBatch(epoch {self.epoch}, step {self.step}, {self.pack!r})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(one.dataset)}</td><td>{escape(one.uid)}</td>"
            f"<td>{one.num_tokens:,}</td></tr>"
            for one in self.samples
        )
        head = "<tr><th>data set</th><th>sample</th><th>tokens</th></tr>"
        where = f"epoch {self.epoch}, step {self.step}"
        samples = f"<table>{head}{rows}</table>"
        return f"<div><b>MicroBatch</b> {where}{self.pack._repr_html_()}{samples}</div>"

    @property
    def is_filler(self) -> bool:
        """Whether it has no samples; fillers give all ranks the same number of micro-batches."""
        return not self.samples

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "MicroBatch":
        """Copies the micro-batch with all tensors to a device."""
        return replace(self, pack=self.pack.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MicroBatch":
        """Copies the micro-batch with all tensors to page-locked memory."""
        return replace(self, pack=self.pack.pin_memory())
