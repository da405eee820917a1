"""Record of a run's settings in its checkpoints, as plain types."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from mathcanvas_lightning.common.keys import flatten
from mathcanvas_lightning.errors import ConfigError, DataError
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.model.config import BagelConfig, LLMConfig, VAEConfig, ViTConfig

RECORD_KEY = "mathcanvas"
"""Key of the record in a checkpoint."""
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Settings of a run that are needed to use its weights."""

    config: BagelConfig
    """Sizes of the network."""
    checkpoint: str | None
    """Directory with the initial weights; None for a preset."""
    lora: LoRASettings | None
    """Settings of the adapters; None without adapters."""
    ema_decay: float | None
    """Decay of the moving average; None without one."""
    freeze: Mapping[str, bool] | None = None
    """Parts of the network -> whether they are frozen; None in checkpoints of older versions."""
    seed: int = 0
    """Random seed of initial weights that come from no checkpoint."""
    left_out: tuple[str, ...] = ()
    """Names of frozen weights that the checkpoint leaves out; they equal the initial ones."""
    weights_digest: str | None = None
    """Digest of the files with the initial weights, if some are left out."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Key -> value of further settings, which may change when the run is resumed."""

    def to_state(self) -> dict[str, Any]:
        """Converts the record to plain types."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any], place: str) -> Self:
        """Reads the record of a checkpoint.

        Args:
            checkpoint: The checkpoint; its weights are not needed.
            place: Its path, for errors.

        Returns:
            The record.

        Raises:
            DataError: If it has no record, or a record of another version.
        """
        state = checkpoint.get(RECORD_KEY)
        version = state.get("version") if isinstance(state, Mapping) else None
        if not isinstance(state, Mapping) or version != VERSION:
            raise DataError(
                place,
                found="a checkpoint without a record"
                if version is None
                else f"a record of version {version}",
                wanted=f"a checkpoint of mathcanvas fit (its record {RECORD_KEY!r}, "
                f"version {VERSION})",
                remedy="Give a .ckpt that was written by a run of BagelModule.",
            )
        lora = state["lora"]
        return cls(
            config=_config(state["config"]),
            checkpoint=state["checkpoint"],
            lora=None if lora is None else LoRASettings(**lora),
            ema_decay=state["ema_decay"],
            freeze=state.get("freeze"),
            seed=state.get("seed", 0),
            left_out=tuple(state.get("left_out", ())),
            weights_digest=state.get("weights_digest"),
            settings=state.get("settings", {}),
        )

    def check(self, other: Self, place: str) -> None:
        """Checks that another run can resume from this record's checkpoint.

        Args:
            other: Record of the run that resumes.
            place: The checkpoint, for errors.

        Raises:
            ConfigError: If its network, adapters or moving average differ.
        """
        mine, theirs = self._decisive(), other._decisive()
        if self.freeze is None:
            theirs = {key: value for key, value in theirs.items() if not key.startswith("freeze.")}
        differing = sorted(k for k in mine.keys() | theirs if mine.get(k) != theirs.get(k))
        if differing:
            raise ConfigError(
                place,
                found="weights of another network: "
                + ", ".join(f"{key} {mine.get(key)}" for key in differing),
                wanted=", ".join(f"{key} {theirs.get(key)}" for key in differing),
                remedy="Use the settings of the run that wrote it, or start a new run with another "
                "trainer.default_root_dir (from its weights: model.source.weights).",
            )
        self.check_initial_weights(other.weights_digest, place)

    def check_initial_weights(self, digest: str | None, place: str) -> None:
        """Checks that the frozen weights are those that the checkpoint leaves out.

        Args:
            digest: Digest of the present initial weights; None if it is not known.
            place: The checkpoint, for errors.

        Raises:
            DataError: If they are other ones.
        """
        if self.left_out and digest and self.weights_digest and digest != self.weights_digest:
            raise DataError(
                place,
                found=f"frozen weights that were left out, and other ones in {self.checkpoint}",
                wanted="the weights from which the run started",
                remedy="Restore that directory, or give another one with the same weights.",
            )

    def changes(self, other: Self) -> list[str]:
        """Describes the settings that may differ between a checkpoint and the run that resumes it.

        Args:
            other: Record of the run that resumes.

        Returns:
            Lines like "model.optimizer.lr 0.002 -> 0.0001".
        """
        return [
            f"{key} {value} -> {other.settings[key]}"
            for key, value in sorted(self.settings.items())
            if key in other.settings and other.settings[key] != value
        ]

    def _decisive(self) -> dict[str, Any]:
        """Setting -> value, for settings that determine names, shapes or meaning of the weights."""
        lora = None
        if self.lora is not None:  # seed and dropout may change
            parts, pattern = sorted(self.lora.parts), self.lora.pattern
            lora = {"rank": self.lora.rank, "alpha": self.lora.alpha, "parts": parts}
            lora["pattern"] = pattern
        config = asdict(
            replace(self.config, timestep_shift=1.0, drawing_size=None, trained_images=None)
        )
        nested = {
            "model": config,
            "lora": lora,
            "ema": self.ema_decay is not None,
            "freeze": self.freeze or {},
        }
        return flat_settings(nested)


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested settings to dotted keys; tuples become lists, as a checkpoint stores them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(settings)}


def _config(state: Mapping[str, Any]) -> BagelConfig:
    vae = {**state["vae"], "ch_mult": tuple(state["vae"]["ch_mult"])}
    own = {key: value for key, value in state.items() if key not in ("llm", "vit", "vae")}
    return BagelConfig(
        llm=LLMConfig(**state["llm"]), vit=ViTConfig(**state["vit"]), vae=VAEConfig(**vae), **own
    )
