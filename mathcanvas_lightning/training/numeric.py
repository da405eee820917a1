"""Numeric settings of a training: number types, and the shift of the timesteps."""

from dataclasses import dataclass
from typing import Literal, TypedDict

import torch

from mathcanvas_lightning.errors import ConfigError

DTypeName = Literal["float32", "bfloat16"]
DTYPES: dict[DTypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NumericSettings(TypedDict, total=False):
    """Keywords of `BagelModule` that `NumericConfig` holds with their defaults.

    Attributes:
        timestep_shift: Shift of the training timesteps towards noise (default: 2.0).
        param_dtype: Type of the trained weights and of their optimizer state (default: float32).
        compute_dtype: Type of forward and backward (default: float32). With bfloat16, float32
            weights serve as master copy.
    """

    timestep_shift: float
    param_dtype: DTypeName
    compute_dtype: DTypeName


@dataclass(frozen=True, kw_only=True)
class NumericConfig:
    """Number types of a training, and the shift of its timesteps."""

    timestep_shift: float = 2.0
    """Shift of the training timesteps towards noise; 1 does not shift."""
    param_dtype: DTypeName = "float32"
    """Type of the trained weights and of their optimizer state."""
    compute_dtype: DTypeName = "float32"
    """Type of forward and backward."""

    def __post_init__(self) -> None:
        """Checks the types.

        Raises:
            ConfigError: If the computation is more precise than the weights.
        """
        if DTYPES[self.param_dtype].itemsize < DTYPES[self.compute_dtype].itemsize:
            raise ConfigError(
                "model.compute_dtype",
                found=f"{self.compute_dtype}, with weights in {self.param_dtype}",
                wanted="no more precise than the weights",
                remedy="Use bfloat16 for both, or float32 weights.",
            )
