"""Compares the memory plan with torch's tracker of a sharded step, without a GPU.

Tensors are fake: they have shapes and types, and no contents. The ranks are fake, too. The step is
forward and backward of BAGEL-7B-MoT, cut to some layers. Attention keeps what a fused kernel does.
The plan adds up peaks that come one after the other, so its peak is the higher one. Moments, the
autoencoder and CUDA's own memory are not tracked.

Example:
  python tools/check_memory_plan.py --layers 28 --tokens 16384 --ranks 8
"""

import argparse
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from mathcanvas_lightning.batch import PackedBatch
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.parallelize import Parallelism, checkpoint_activations, shard
from mathcanvas_lightning.model.synthetic import Kind, synthetic_inputs, synthetic_pack
from mathcanvas_lightning.training.memory.formulas import RankWork, rank_memory
from mathcanvas_lightning.training.memory.plan import count_network

SAMPLE: list[Kind] = ["question", "clean", "vit", "answer", "noisy", "clean", "vit", "answer"]
STATES = {"weights": "Sharded Param", "gradients": "Sharded Grad"}
"""Names of the plan to those of the tracker, of what is there after the step."""
NOT_TRACKED = ("Adam's moments", "autoencoder", "CUDA context, kernels, fragmentation")


class FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: q, k, v and the result."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Allocates the result."""
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        """Allocates the gradients."""
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class FusedStack:
    """Attention of all layers of a stack."""

    def of_layer(self, _: int) -> "FusedStack":
        """Attention of a decoder layer."""
        return self

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        """Attention of any layer."""
        return FusedAttention.apply(query, key, value)


def make_pack(config: BagelConfig, tokens: int) -> PackedBatch:
    """Makes a pack of about the given number of tokens."""
    samples, sizes = [SAMPLE], {"text_tokens": (64, 256), "image_side": (32, 32)}
    while True:
        batch = synthetic_pack(samples, config, **sizes)
        if batch.sequence_length >= tokens:
            return batch
        samples.append(SAMPLE)


def track(
    config: BagelConfig, batch: PackedBatch, parallelism: Parallelism, ranks: int
) -> dict[str, int]:
    """Runs a step of one rank; returns the tracker's bytes of weights, gradients and the peak."""
    mesh = init_device_mesh("cpu", (1, ranks), mesh_dim_names=("replicate", "shard"))
    inputs = synthetic_inputs(batch, config)
    _ = batch.layout  # made from contents, so before they are gone
    mode = FakeTensorMode()
    with mode:
        model = Bagel(config)
        model.freeze()
        checkpoint_activations(model, parallelism)
        shard(model, mesh, compute_dtype=torch.bfloat16, parallelism=parallelism)
        vars(model)["_attention"] = lambda *_: FusedStack()
        fake = batch._with([mode.from_tensor(tensor) for tensor in batch._tensors()])
        with FSDPMemTracker(model) as tracker:
            output = model(fake, **{name: mode.from_tensor(x) for name, x in inputs.items()})
            (output.ce.sum() + output.velocities.float().square().sum()).backward()
            del output
            snapshots = [tracker.get_tracker_snapshot(when) for when in ("peak", "current")]
    peak, after = (next(iter(snapshot.values())) for snapshot in snapshots)
    found = {name: _bytes_of(after, name) for name in STATES.values()}
    return found | {"Total": _bytes_of(peak, "Total")}


def _bytes_of(snapshot: dict[Any, int], name: str) -> int:
    return next(n for kind, n in snapshot.items() if getattr(kind, "value", kind) == name)


def main() -> None:
    """Compares, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=28, help="decoder layers (default: 28)")
    parser.add_argument("--tokens", type=int, default=16384, help="of a pack (default: 16384)")
    parser.add_argument("--ranks", type=int, default=8, help="that share the network (default: 8)")
    options = parser.parse_args()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=options.ranks)
    config = BagelConfig.preset("7b", llm_num_hidden_layers=options.layers)
    parallelism = Parallelism(activation_checkpointing="full")
    batch = make_pack(config, options.tokens)
    tracked = track(config, batch, parallelism, options.ranks)
    with torch.device("meta"):
        counts = count_network(Bagel(config), lambda model: model.freeze())
    work = RankWork(
        config=config,
        counts=counts,
        parallelism=parallelism,
        params=torch.float32,
        frozen=torch.float32,
        compute=torch.bfloat16,
        shards=options.ranks,
        is_sharded=True,
        average_on_gpu=False,
        average_on_host=False,
        tokens=batch.sequence_length,
        vit_share=len(batch.vit_indexes) / batch.sequence_length,
    )
    planned = {item.name: item.gpu for item in rank_memory(work) if item.name not in NOT_TRACKED}
    table = Table("", "plan, GB", "tracker, GB", title=f"{batch.sequence_length:,} tokens")
    for name, kind in STATES.items():
        table.add_row(name, f"{planned[name] / 1e9:.2f}", f"{tracked[kind] / 1e9:.2f}")
    total = sum(planned.values())
    table.add_row("peak of the step", f"{total / 1e9:.2f}", f"{tracked['Total'] / 1e9:.2f}")
    Console().print(table)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
