"""Entry point of the group `vllm.general_plugins`, which vLLM calls in each of its processes.

A user passes only the name of the architecture; the settings that the model needs are set here.
"""

import logging
from typing import Any

from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.model_executor.models.registry import ModelRegistry

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.vllm_bagel import ARCHITECTURE
from mathcanvas_lightning.vllm_bagel.private import check_vllm

logger = logging.getLogger(__name__)

SCHEDULER = "mathcanvas_lightning.vllm_bagel.scheduler.make_scheduler"


def register() -> None:
    """Registers the model and its settings under `ARCHITECTURE`; may be repeated."""
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.model:MathCanvasBagel")
    MODELS_CONFIG_MAP[ARCHITECTURE] = EngineDefaults


class EngineDefaults(VerifyAndUpdateConfig):
    """vLLM calls both methods before it uses the configuration."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Makes vLLM take the positions of the prompt from the model.

        Args:
            model_config: vLLM's ModelConfig.

        Raises:
            ConfigError: If this vLLM is another version and lacks something, or the directory
                can't be used.
        """
        check_vllm()
        _largest_image(model_config)
        # Three equal sections: vLLM then asks the model for positions; the rotary embedding itself
        # stays the one-dimensional one of Qwen2.
        model_config.hf_config.mrope_section = [1, 1, 1]

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Sets the scheduler, eager mode, and a budget that fits an image.

        Args:
            vllm_config: vLLM's VllmConfig.

        Raises:
            ConfigError: If an option would split images or change their positions.
        """
        _refuse(vllm_config)
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        # The experts of a batch depend on its tokens, which a captured graph can't follow.
        vllm_config.model_config.enforce_eager = True
        scheduler = vllm_config.scheduler_config
        largest = _largest_image(vllm_config.model_config)
        needed = min(largest, vllm_config.model_config.max_model_len) + scheduler.max_num_seqs
        if scheduler.max_num_batched_tokens < needed:
            logger.warning(
                "max_num_batched_tokens is raised from %d to %d: the largest image (%d tokens) and "
                "one token of each running answer must fit into one forward pass",
                scheduler.max_num_batched_tokens,
                needed,
                largest,
            )
            scheduler.max_num_batched_tokens = needed


def _refuse(vllm_config: Any) -> None:
    scheduler = vllm_config.scheduler_config
    options = {
        "scheduler_cls": scheduler.scheduler_cls not in (None, SCHEDULER),
        "speculative_config": vllm_config.speculative_config is not None,
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold > 0,
    }
    for name, is_set in options.items():
        if is_set:
            raise ConfigError(
                f"engine_options.{name}",
                found="a value",
                wanted="nothing: BAGEL's images must stay whole in each forward pass",
                remedy="Remove it.",
            )


def _largest_image(model_config: Any) -> int:
    # Imported here: vLLM loads the plugin also for other models.
    from mathcanvas_lightning.vllm_bagel.directory import engine_directory

    return engine_directory(model_config.model).max_block_tokens
