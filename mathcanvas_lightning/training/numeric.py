"""Numeric settings of a training: number types, shift of the timesteps, steps to skip."""

from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch.distributed.device_mesh import DeviceMesh

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.parallelize import Precision

DTypeName = Literal["float32", "bfloat16"]
FrozenName = Literal["float32", "bfloat16", "nf4"]
DTYPES: dict[DTypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARAM_DTYPE_WARNING = (
    "model.param_dtype %s: most updates of weights are smaller than the rounding of this type and "
    "are lost. Train in float32; frozen_dtype and compute_dtype may be bfloat16."
)


class NumericSettings(TypedDict, total=False):
    """Keywords of `BagelModule` that `NumericConfig` holds with their defaults.

    Attributes:
        timestep_shift: Shift of the training timesteps towards noise (default: 2.0).
        param_dtype: Type of the trained weights and of their optimizer state (default: float32).
        frozen_dtype: Type of the frozen weights (default: that of compute_dtype). With nf4, the
            frozen linear layers of decoder and ViT take 4.5 bits per weight, the others have the
            type of compute_dtype; it needs the extra qlora.
        compute_dtype: Type of forward and backward (default: float32). With bfloat16, float32
            weights serve as master copy.
        float8: Multiply in float8 in the linear layers of the decoder (default: False). It needs
            the extra float8, compiled layers, and a GPU of compute capability 8.9 or later; a CPU
            emulates it.
        max_skipped_steps: Optimizer steps in a row that may be skipped because a gradient is not
            finite; one more ends the run (default: 10).
    """

    timestep_shift: float
    param_dtype: DTypeName
    frozen_dtype: FrozenName | None
    compute_dtype: DTypeName
    float8: bool
    max_skipped_steps: int


@dataclass(frozen=True, kw_only=True)
class NumericConfig:
    """Number types of a training, the shift of its timesteps, and the steps it may skip."""

    timestep_shift: float = 2.0
    """Shift of the training timesteps towards noise; 1 does not shift."""
    param_dtype: DTypeName = "float32"
    """Type of the trained weights and of their optimizer state."""
    frozen_dtype: FrozenName | None = None
    """Type of the frozen weights; None takes that of the computation."""
    compute_dtype: DTypeName = "float32"
    """Type of forward and backward."""
    float8: bool = False
    """Multiply in float8 in the linear layers of the decoder."""
    max_skipped_steps: int = 10
    """Optimizer steps in a row that may be skipped because a gradient is not finite."""

    def __post_init__(self) -> None:
        """Checks the types and the number of steps.

        Raises:
            ConfigError: If the computation is more precise than the weights, or the number of steps
                is negative.
        """
        for name, dtype in (("weights", self.param_dtype), ("frozen weights", self.frozen_dtype)):
            if dtype in DTYPES and DTYPES[dtype].itemsize < DTYPES[self.compute_dtype].itemsize:
                raise ConfigError(
                    "model.compute_dtype",
                    found=f"{self.compute_dtype}, with {name} in {dtype}",
                    wanted="no more precise than the weights",
                    remedy="Use bfloat16 for both, or float32 weights.",
                )
        if self.float8 and self.frozen_dtype == "nf4":
            raise ConfigError(
                "model.float8",
                found="true, together with model.frozen_dtype nf4",
                wanted="one of them: a layer in NF4 is multiplied in the type of compute_dtype",
                remedy="Leave one of them out.",
            )
        if self.max_skipped_steps < 0:
            raise ConfigError(
                "model.max_skipped_steps",
                found=str(self.max_skipped_steps),
                wanted="0 or more",
                remedy="With 0, the first gradient that is not finite ends the run.",
            )

    @property
    def precision(self) -> Precision:
        """The types of the network's parameters and of its computation."""
        is_nf4 = self.frozen_dtype == "nf4"
        frozen = None if self.frozen_dtype == "nf4" else self.frozen_dtype
        return Precision(
            params=DTYPES[self.param_dtype],
            frozen=DTYPES[frozen or self.compute_dtype],
            compute=DTYPES[self.compute_dtype],
            quantized=is_nf4,
            float8=self.float8,
        )


def autocast_dtype(precision: Precision, mesh: DeviceMesh | None) -> torch.dtype | None:
    """Type that autocast computes in.

    Args:
        precision: Types of the network.
        mesh: Mesh of a sharded network, which casts its gathered weights itself.

    Returns:
        The type; None if all weights have the type of the computation.
    """
    types = {precision.params, precision.frozen, precision.compute}
    return None if len(types) == 1 or mesh is not None else precision.compute
