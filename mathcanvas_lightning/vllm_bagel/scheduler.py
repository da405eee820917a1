"""vLLM's schedulers, which here never end a chunk of a prompt inside an image.

Their own option for this (`disable_chunked_mm_input`) misses a chunk that starts at the image.
"""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from mathcanvas_lightning.vllm_bagel.ranges import whole_images


class _WholeImages:
    """Shortens chunks of prompts to whole images."""

    def _try_schedule_encoder_inputs(
        self,
        request: Any,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[Any, ...]:
        images = [(f.mm_position.offset, f.mm_position.length) for f in request.mm_features]
        scheduled: tuple[Any, ...] = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request,
            num_computed_tokens,
            whole_images(num_computed_tokens, num_new_tokens, images),
            encoder_compute_budget,
            shift_computed_tokens,
        )
        assert whole_images(num_computed_tokens, scheduled[1], images) == scheduled[1], scheduled
        return scheduled


class WholeImageScheduler(_WholeImages, Scheduler):
    """vLLM's scheduler."""


class AsyncWholeImageScheduler(_WholeImages, AsyncScheduler):
    """vLLM's scheduler that plans a step while the one before it runs."""


def make_scheduler(vllm_config: Any, **settings: Any) -> Scheduler:
    """The scheduler of an engine, of the kind that vLLM would choose.

    Args:
        vllm_config: vLLM's VllmConfig.
        settings: Other arguments of vLLM's scheduler.
    """
    kind = WholeImageScheduler
    if vllm_config.scheduler_config.async_scheduling:
        kind = AsyncWholeImageScheduler
    return kind(vllm_config=vllm_config, **settings)
