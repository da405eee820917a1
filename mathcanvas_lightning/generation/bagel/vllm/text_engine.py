"""What the generator needs of an engine that writes texts, and contexts in the engine's form."""

from collections.abc import Collection, Sequence
from typing import Protocol

from mathcanvas_lightning.data.sequence.pack import pack_samples
from mathcanvas_lightning.data.sequence.rng import hash64
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.generation.bagel.contexts import MAX_PREFILL_TOKENS, Item, ItemMaker
from mathcanvas_lightning.generation.bagel.kv_cache import in_passes
from mathcanvas_lightning.generation.bagel.rollout.state import Rollout
from mathcanvas_lightning.model.vae import LatentVAE, pack_latents
from mathcanvas_lightning.vllm_bagel.blocks import ContextPart, ImageBlock
from mathcanvas_lightning.vllm_bagel.pictures import blocks_of_pack


class TextEngine(Protocol):
    """Continues contexts with texts, many at a time, while its caller does something else."""

    def submit(self, requests: Sequence[ContextRequest]) -> None:
        """Adds contexts to the running batch; returns at once."""
        ...

    def collect(self, *, wait: bool = True) -> Sequence[ContextResult]:
        """The texts that are finished.

        Args:
            wait: Whether to wait until there is at least one, if any is pending.
        """
        ...

    def withdraw(self, uids: Collection[str]) -> None:
        """Drops pending contexts; no result comes for them."""
        ...

    def close(self) -> None:
        """Stops the engine."""
        ...


class ContextMaker:
    """Converts items to the parts of an engine's context.

    Args:
        maker: Maker of the items.
        vae: Encodes images (mean of its posterior); None if no item has latents.
        latent_patch: Side of a latent token, in latents.
    """

    def __init__(self, maker: ItemMaker, vae: LatentVAE | None, latent_patch: int) -> None:
        self.maker = maker
        self._vae, self._latent_patch = vae, latent_patch

    def parts(self, items: Sequence[Item]) -> list[list[ContextPart]]:
        """The parts of each item; images are encoded together, as many as memory allows.

        Args:
            items: Items in any order.

        Returns:
            A text has one part, an image one or two blocks.
        """
        images = [item for item in items if item.size_px is not None]
        passes = in_passes(images, lambda item: item.num_tokens, MAX_PREFILL_TOKENS)
        blocks = (block for group in passes for block in self._blocks(group))
        special = self.maker.tokenizer.special
        return [
            [(special.bos, *item.content.text_ids[0], special.eos)]
            if item.size_px is None
            else [next(blocks) for _ in item.content.splits]
            for item in items
        ]

    def _blocks(self, images: Sequence[Item]) -> list[ImageBlock]:
        maker = self.maker
        pack = pack_samples(
            [item.content for item in images],
            maker.geometry,
            maker.tokenizer.special,
            interpolate_positions=maker.interpolate_positions,
        )
        latents = None
        if pack.latent_shapes:
            assert self._vae is not None
            on_device = pack.to(next(self._vae.parameters()).device)
            latents = pack_latents(self._vae, on_device, self._latent_patch).cpu()
        return blocks_of_pack(pack, latents)


def text_request(
    rollout: Rollout, context: Sequence[ContextPart], special: SpecialTokens, serial: int
) -> ContextRequest:
    """Asks for the next text of a problem, and for what follows it.

    Args:
        rollout: A problem that needs a text.
        context: Parts of all its items.
        special: Special tokens of the model.
        serial: Number of the request; no two requests of an engine may have the same uid, not even
            if the first one was withdrawn.
    """
    text = rollout.config.text
    return ContextRequest(
        uid=f"{rollout.problem.uid}/{rollout.number}/{serial}",
        context=(*context, (special.bos,)),
        end_id=special.eos,
        max_tokens=rollout.max_new_tokens,
        temperature=text.temperature,
        top_p=text.top_p,
        seed=hash64(*rollout.text_key) >> 1,
        wants_action=rollout.problem.mode == "interleaved",
        wants_logprobs=True,  # NaN shows that the network is broken
    )
