"""Sizes of a BAGEL model, from a checkpoint directory or a preset, with overrides."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.common.keys import did_you_mean, nearest
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError

GEN_SUFFIX = "_moe_gen"
"""Suffix of the generation expert's modules in the published parameter names."""
LLM_FILE, VIT_FILE, BAGEL_FILE = "llm_config.json", "vit_config.json", "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMConfig:
    """Decoder: Qwen2 with q/k norm and two experts. Field names are those of `llm_config.json`."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        """Dimension of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Reads `llm_config.json`, or the `config.json` of a plain Qwen2.

        Raises:
            ConfigError: If it can't be read, or sets rotary scaling, which BAGEL doesn't support.
        """
        values = _read(path)
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ConfigError(
                str(path),
                found=f"rotary embeddings of type {kind!r}",
                wanted="type 'default'",
                remedy="Start from a model without rotary scaling.",
            )
        # transformers 5 writes rope_theta into rope_parameters, earlier versions beside it.
        return cls(**_known(cls, values | {k: v for k, v in rope.items() if k == "rope_theta"}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig:
    """SigLIP image encoder. Field names are those of `vit_config.json`."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    """Number of layers in the file. BAGEL uses the features before the last layer, which is not
    built."""
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 980
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def num_layers_used(self) -> int:
        """Number of layers that are built."""
        return self.num_hidden_layers - 1

    @property
    def num_positions(self) -> int:
        """Number of rows of SigLIP's learned position table."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Number of values in a flattened patch."""
        return self.num_channels * self.patch_size**2


@dataclass(frozen=True, slots=True, kw_only=True)
class VAEConfig:
    """Image autoencoder. The defaults are those of FLUX, as in the published model."""

    z_channels: int = 16
    downsample: int = 8
    in_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    """Groups of the norms; one channel a group would hide differences of colour."""
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159


@dataclass(frozen=True, slots=True, kw_only=True)
class BagelConfig:
    """Sizes of a complete model."""

    llm: LLMConfig = field(default_factory=LLMConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    latent_patch_size: int = 2
    """Side of the square of latents that form one token."""
    max_latent_size: int = 64
    """Side of the latent position table, in tokens."""
    vit_max_num_patch_per_side: int = 70
    """Side of the ViT position table, in patches."""
    timestep_shift: float = 1.0
    """Timestep shift in config.json. Not used here: training and sampling have their own."""
    drawing_size: tuple[int, int] | None = None
    """Width and height in pixels of the drawings that the model was trained on; None if unknown."""
    trained_images: Mapping[str, Any] | None = field(default=None, compare=False)
    """Image sizes of the training, see `data.images.trained.TrainedImages`; None if unknown."""

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent token."""
        return self.latent_patch_size**2 * self.vae.z_channels

    @property
    def geometry(self) -> TokenGeometry:
        """Patch sizes and maximum image sizes, in pixels and tokens."""
        return TokenGeometry(
            vit_patch_px=self.vit.patch_size,
            latent_patch_px=self.vae.downsample * self.latent_patch_size,
            max_vit_side=self.vit_max_num_patch_per_side,
            max_latent_side=self.max_latent_size,
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Returns the configuration of a named model.

        Args:
            name: "tiny" (runs anywhere), "small" (about 100 M parameters) or "7b".
            overrides: Fields of this class, or fields of `LLMConfig`, `ViTConfig` and `VAEConfig`
                with the prefixes `llm_`, `vit_` and `vae_`.

        Returns:
            The configuration.

        Raises:
            ConfigError: If there is no such preset or field.
        """
        if name not in PRESETS:
            raise ConfigError(
                "preset",
                found=repr(name),
                wanted=f"one of {', '.join(PRESETS)}",
                remedy=did_you_mean(name, PRESETS),
            )
        base = cls(**PRESETS[name])
        return base.override(**overrides)

    def override(self, **overrides: Any) -> Self:
        """Returns a copy with other values; see `preset` for the names.

        Raises:
            ConfigError: If there is no such field.
        """
        parts: dict[str, dict[str, Any]] = {"llm": {}, "vit": {}, "vae": {}}
        own: dict[str, Any] = {}
        for name, value in overrides.items():
            value = tuple(value) if isinstance(value, list) else value  # as YAML has it
            prefix, _, rest = name.partition("_")
            if prefix in parts and rest in {f.name for f in fields(getattr(self, prefix))}:
                parts[prefix][rest] = value
            elif name in {f.name for f in fields(self)}:
                own[name] = value
            else:
                raise ConfigError(
                    f"model.{name}",
                    found="no such field",
                    wanted="llm_..., vit_..., vae_... or a field of BagelConfig",
                    remedy="Check its spelling.",
                )
        changed = {name: replace(getattr(self, name), **new) for name, new in parts.items() if new}
        return replace(self, **changed, **own)

    @classmethod
    def from_directory(cls, path: str | Path) -> Self:
        """Reads the three config files of a checkpoint directory.

        The sizes of the position tables are those of `config.json`. If the weights have other
        sizes, loading uses those of the weights.

        Raises:
            ConfigError: If a file is missing or lacks a field.
        """
        folder = local_path(path)
        bagel = _read(folder / BAGEL_FILE)
        vae = bagel.get("vae_config", {})
        if "ch_mult" in vae:
            vae = {**vae, "ch_mult": tuple(vae["ch_mult"])}
        if bagel.get("drawing_size") is not None:
            bagel = {**bagel, "drawing_size": tuple(bagel["drawing_size"])}
        own = {f.name for f in fields(cls)} - {"llm", "vit", "vae"}
        return cls(
            llm=LLMConfig.from_file(folder / LLM_FILE),
            vit=ViTConfig(**_known(ViTConfig, _read(folder / VIT_FILE))),
            vae=VAEConfig(**_known(VAEConfig, vae)),
            **{name: value for name, value in bagel.items() if name in own},
        )

    def files(self) -> dict[str, dict[str, Any]]:
        """Returns the content of the config files, by file name."""
        llm = asdict(self.llm) | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
        }
        vit = asdict(self.vit) | {
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "attention_dropout": 0.0,
        }
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        bagel = {name: value for name, value in own.items() if name not in ("llm", "vit", "vae")}
        return {
            LLM_FILE: llm,
            VIT_FILE: vit,
            BAGEL_FILE: {
                "architectures": ["BagelForConditionalGeneration"],
                "model_type": "bagel",
                "visual_gen": True,
                "visual_und": True,
                "connector_act": "gelu_pytorch_tanh",
                "interpolate_pos": bool((self.trained_images or {}).get("interpolate_positions")),
                **bagel,
                "llm_config": llm | {"qk_norm": True, "layer_module": "Qwen2MoTDecoderLayer"},
                "vit_config": vit,
                "vae_config": asdict(self.vae),
            },
        }


DRAWING_VAE = VAEConfig(
    ch=8,
    ch_mult=(1, 2, 4, 4),
    num_res_blocks=1,
    norm_num_groups=2,
    scale_factor=1.0061441659927368,
    shift_factor=-0.12096328288316727,
)
"""The small autoencoder that the package ships, trained on drawings of cubes."""
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "llm": LLMConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            rope_theta=10_000.0,
            initializer_range=0.08,  # the fixed position tables have a root mean square of 0.7
        ),
        "vit": ViTConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=224,
        ),
        "vae": DRAWING_VAE,
        "max_latent_size": 16,
        "vit_max_num_patch_per_side": 16,
    },
    "small": {
        "llm": LLMConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=12,
            num_attention_heads=8,
            num_key_value_heads=2,
        ),
        "vit": ViTConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=9,
            num_attention_heads=6,
            image_size=448,
        ),
        "vae": DRAWING_VAE,
        "max_latent_size": 32,
        "vit_max_num_patch_per_side": 32,
    },
    "7b": {},
}


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _read(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise _no_directory(path.parent)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            str(path),
            found="no such file"
            if isinstance(error, FileNotFoundError)
            else f"{type(error).__name__}: {error}",
            wanted="a JSON file of a BAGEL-7B-MoT directory",
            remedy="Give a directory with llm_config.json, vit_config.json and config.json.",
        ) from None
    return content


def _no_directory(folder: Path) -> ConfigError:
    beside = folder.parent if folder.parent.is_dir() else Path()
    near = nearest(folder.name, [path.name for path in beside.iterdir() if path.is_dir()])
    return ConfigError(
        str(folder),
        found="no such directory",
        wanted="a checkpoint in the layout of BAGEL-7B-MoT",
        remedy=f"Did you mean {folder.with_name(near)}?"
        if near
        else "Correct the path, or download ByteDance-Seed/BAGEL-7B-MoT from Hugging Face into it.",
    )
