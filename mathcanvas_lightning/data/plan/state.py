"""The position of a run in its data, as saved in checkpoints; equal on all ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from mathcanvas_lightning.data.plan.schedule import Segment
from mathcanvas_lightning.errors import ConfigError

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DataState:
    """The next optimizer step, and hashes of the settings behind the plan."""

    epoch: int = 0
    segments: tuple[Segment, ...] = ()
    """Finished parts of the epoch, each with another number of packs per step."""
    packs_per_step: int
    """B, packs per optimizer step since the last segment."""
    step: int = 0
    """Finished steps since the last segment."""
    fingerprint: Mapping[str, str]
    """Topic -> hash of the settings that the plan depends on."""

    @property
    def packs_done(self) -> int:
        """Finished packs of the epoch, fillers included."""
        done = sum(segment.steps * segment.packs_per_step for segment in self.segments)
        return done + self.step * self.packs_per_step

    def after(self, steps: int) -> "DataState":
        """The state some steps later in the same epoch."""
        return replace(self, step=self.step + steps)

    def to_dict(self) -> dict[str, Any]:
        """The state as plain types, for a checkpoint."""
        return {
            "version": VERSION,
            "epoch": self.epoch,
            "segments": [[s.packs_per_step, s.steps] for s in self.segments],
            "packs_per_step": self.packs_per_step,
            "step": self.step,
            "fingerprint": dict(self.fingerprint),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Restores the output of `to_dict`.

        Raises:
            ConfigError: If another version of the format wrote it.
        """
        if state.get("version") != VERSION:
            raise ConfigError(
                "data state of the checkpoint",
                found=f"version {state.get('version')}",
                wanted=f"version {VERSION}",
                remedy="Resume with the version of this library that wrote the checkpoint.",
            )
        return cls(
            epoch=state["epoch"],
            segments=tuple(Segment(*pair) for pair in state["segments"]),
            packs_per_step=state["packs_per_step"],
            step=state["step"],
            fingerprint=state["fingerprint"],
        )

    def resume_with(self, packs_per_step: int, fingerprint: Mapping[str, str]) -> "DataState":
        """The same position in a run that resumes with its current settings.

        Args:
            packs_per_step: Packs per optimizer step from now on.
            fingerprint: Fingerprint of the current plan.

        Returns:
            The state to start with.

        Raises:
            ConfigError: If the plan differs; it names the topics that differ.
        """
        names = sorted({*self.fingerprint, *fingerprint})
        changed = [n for n in names if self.fingerprint.get(n) != fingerprint.get(n)]
        if changed:
            raise ConfigError(
                "data state of the checkpoint",
                found=f"a plan that differs in: {', '.join(changed)}",
                wanted="the data and settings that the run started with",
                remedy="Restore them, or start a new run from the checkpoint's weights: with "
                "other data the position has no meaning.",
            )
        if packs_per_step == self.packs_per_step or not self.step:
            segments, step = self.segments, self.step
        else:
            segments = (*self.segments, Segment(self.packs_per_step, self.step))
            step = 0
        return replace(self, segments=segments, packs_per_step=packs_per_step, step=step)
