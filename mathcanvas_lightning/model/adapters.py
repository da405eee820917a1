"""LoRA adapters (peft) on the experts, the ViT and the connector."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.config import GEN_SUFFIX
from mathcanvas_lightning.model.layers.quantized import quantized_layers

if TYPE_CHECKING:  # importing peft takes seconds, and few runs have adapters
    from peft.tuners.lora import LoraLayer

LORA_PARTS: Mapping[str, str] = {
    "und": r"language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "gen": r"language_model\.model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)",
    "vit": r"vit_model\.vision_model\.encoder\.layers\.\d+\.(self_attn\.\w+_proj|mlp\.fc[12])",
    "connector": r"connector\.fc[12]",
}
"""Part of the network -> pattern of the names of its projections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRASettings:
    """LoRA settings: which projections get adapters, and their rank."""

    parts: Sequence[str] = ("und", "gen")
    """Parts whose projections get adapters, of `LORA_PARTS`."""
    rank: int = 16
    """Rank of the adapter matrices."""
    alpha: float = 32.0
    """Outputs of the adapters are multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability on the input of the adapters; above 0 the forward pass is random."""
    pattern: str | None = None
    """Regular expression that the name of a projection must contain, such as `layers\\.2[0-7]`;
    None selects all projections of the parts."""
    seed: int | None = None
    """Random seed of the initial adapter weights; by default `seed_everything` of the same
    configuration, or 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartParameters:
    """Parameter counts of one part of a model."""

    part: str
    total: int
    trainable: int


def add_lora(model: nn.Module, settings: LoRASettings) -> list[str]:
    """Adds adapters to a model in place, and freezes all other parameters.

    Args:
        model: A `Bagel` without adapters.
        settings: Which projections get adapters, and their rank.

    Returns:
        Names of the projections with adapters. New adapters do not change the model's outputs.

    Raises:
        ConfigError: If a part is unknown, or no projection fits the pattern.
    """
    if unknown := set(settings.parts) - set(LORA_PARTS):
        raise ConfigError(
            "lora.parts",
            found=str(sorted(unknown)),
            wanted=f"some of {', '.join(LORA_PARTS)}",
            remedy="Check their spelling.",
        )
    names = [name for name, _ in model.named_modules() if _is_wanted(name, settings)]
    if not names:
        raise ConfigError(
            "lora",
            found=f"no projection of {list(settings.parts)} that fits {settings.pattern!r}",
            wanted="at least one",
            remedy="Loosen lora.pattern; it is searched for in the projections' full names.",
        )
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(f"(?:{re.escape(name)})" for name in names),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed or 0)  # not the one of a GPU
        inject_adapter_in_model(config, model)
    return names


def merge_lora(model: nn.Module) -> None:
    """Adds the adapters to the weights they adapt; `unmerge_lora` subtracts them again."""
    for _, layer in _lora_layers(model):
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Undoes `merge_lora`."""
    for _, layer in _lora_layers(model):
        layer.unmerge()


def absorb_lora(model: nn.Module) -> None:
    """Merges the adapters permanently, which restores the published parameter names."""
    merge_lora(model)
    for name, layer in list(_lora_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def has_lora(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(True for _ in _lora_layers(model))


def parameter_report(model: nn.Module) -> list[PartParameters]:
    """Counts the parameters of each part, and how many of them are trainable.

    Args:
        model: A `Bagel`, with or without adapters.

    Returns:
        One entry per part, "total" last.
    """
    counts: dict[str, list[int]] = {}
    packed = {name: layer.num_weights for name, layer in quantized_layers(model)}
    for name, parameter in model.named_parameters():
        for part in (_part(name), "total"):
            entry = counts.setdefault(part, [0, 0])
            entry[0] += packed.get(name, parameter.numel())
            entry[1] += parameter.numel() if parameter.requires_grad else 0
    total = counts.pop("total", [0, 0])
    return [
        PartParameters(part=part, total=numbers[0], trainable=numbers[1])
        for part, numbers in [*counts.items(), ("total", total)]
    ]


def _is_wanted(name: str, settings: LoRASettings) -> bool:
    in_parts = any(re.fullmatch(LORA_PARTS[part], name) for part in settings.parts)
    return in_parts and (settings.pattern is None or bool(re.search(settings.pattern, name)))


def _part(name: str) -> str:
    if not name.startswith("language_model"):
        return name.split(".")[0]
    if "lm_head" in name or "embed_tokens" in name:
        return "embeddings and head"
    return "gen expert" if GEN_SUFFIX in name else "und expert"


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    if "peft" not in sys.modules:  # no layer has adapters
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
