"""Where a run is in its data: a few numbers, equal on all ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from mathcanvas_lightning.data.plan.schedule import Segment
from mathcanvas_lightning.errors import ConfigError

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DataState:
    """The next optimizer step, and what the plan was made of."""

    epoch: int = 0
    segments: tuple[Segment, ...] = ()
    """What was done of the epoch with other numbers of packs a step."""
    packs_per_step: int
    """B since the last of these."""
    step: int = 0
    """Steps done with it."""
    fingerprint: Mapping[str, str]
    """Part of the plan -> hash of what decides it."""

    @property
    def packs_done(self) -> int:
        """Packs of the epoch that are done, fillers included."""
        done = sum(segment.steps * segment.packs_per_step for segment in self.segments)
        return done + self.step * self.packs_per_step

    def after(self, steps: int) -> "DataState":
        """The place some steps later in the same epoch."""
        return replace(self, step=self.step + steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain types alone, for a checkpoint."""
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
        """What `to_dict` gave.

        Raises:
            ConfigError: If it is of another version.
        """
        if state.get("version") != VERSION:
            raise ConfigError(
                "data state of the checkpoint",
                found=f"version {state.get('version')}",
                wanted=f"version {VERSION}",
                remedy="Resume with the version of this library that wrote it.",
            )
        return cls(
            epoch=state["epoch"],
            segments=tuple(Segment(*pair) for pair in state["segments"]),
            packs_per_step=state["packs_per_step"],
            step=state["step"],
            fingerprint=state["fingerprint"],
        )

    def go_on_with(self, packs_per_step: int, fingerprint: Mapping[str, str]) -> "DataState":
        """The same place in a run that goes on with its own settings.

        Args:
            packs_per_step: From now on.
            fingerprint: Of the plan as it is configured now.

        Returns:
            The state to begin with.

        Raises:
            ConfigError: If the plan is another: it names what differs.
        """
        names = sorted({*self.fingerprint, *fingerprint})
        changed = [n for n in names if self.fingerprint.get(n) != fingerprint.get(n)]
        if changed:
            raise ConfigError(
                "data state of the checkpoint",
                found=f"a plan that differs in: {', '.join(changed)}",
                wanted="the data and settings that the run was begun with",
                remedy="Restore them, or start a new run from the checkpoint's weights: with "
                "other data there is no place to go on from.",
            )
        if packs_per_step == self.packs_per_step or not self.step:
            segments, step = self.segments, self.step
        else:
            segments = (*self.segments, Segment(self.packs_per_step, self.step))
            step = 0
        return replace(self, segments=segments, packs_per_step=packs_per_step, step=step)
