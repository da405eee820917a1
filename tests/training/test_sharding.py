"""Losses and weights do not depend on sharding or accumulation."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.parallelize import Parallelism, Precision, build_network
from mathcanvas_lightning.training.source import ModelSource
from tests.data.make_rows import interleaved_row, interleaved_shards, t2i_shards, write_shards
from tests.training.launch import TRANSFORMS, Run, difference, launch
from tests.training.runs import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first test waits for all runs

# Adam divides by the root of the squared gradient. With a tiny eps, a gradient that is a rounding
# error (such as that of a key's bias) would move its parameter by the full learning rate.
ADAM = {"optimizer": {"lr": 1e-3, "eps": 1e-4}}
LORA = {"parts": ["und", "gen", "vit", "connector"], "rank": 4, "seed": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "und_frozen": {"freeze": {"und": True}},
    "llm_frozen": {"freeze": {"llm": True, "vit": True}},
    "lora": {"lora": LORA},
}
SHARDED_ONLY: dict[str, dict[str, Any]] = {
    "full": {"parallelism": {"activation_checkpointing": "full"}},
    "selective": {"parallelism": {"activation_checkpointing": "selective"}},
    "offloaded": {"parallelism": {"cpu_offload": True}},
}
COMPILED = {"compile": True, "compile_backend": "aot_eager_decomp_partition"}
ONE_LAYER = {"source": {"preset": "tiny", "overrides": {**SMALL, "llm_num_hidden_layers": 1}}}
ADAPTED = {"lora": {**LORA, "parts": ["und", "gen"]}, **ONE_LAYER}
SHORTEST: dict[str, dict[str, Any]] = {
    "adapted": ADAPTED,
    "budget": {**ADAPTED, "parallelism": {**COMPILED, "activation_memory_budget": 0.1}},
}
"""Two steps of one pack a rank: compiling takes half a minute. The second gives A a gradient."""
OTHERS = ("validated", "half", "read")
SHORT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


Runs = Callable[[str, int], Run]


@pytest.fixture(scope="module")
def runs(folder: Path, golden: Path) -> Runs:
    """All runs of this file, in one process and in two."""
    rows = interleaved_shards(folder / "rows", 60)
    texts = write_shards(folder / "texts", [interleaved_row(n, images=0) for n in range(24)])
    pictures = t2i_shards(folder / "t2i", 24)
    unequal = {"max_num_tokens": 120, "max_num_tokens_per_sample": 120, "packs_per_step": 6}
    checkpoint = {"source": {"checkpoint": str(golden / "tiny_bagel")}, **ADAM}

    def make(name: str, ranks: int) -> Run:
        options: dict[str, Any] = {"steps": SHORT, "shards": [rows], "model": {**ADAM}}
        if name in ("sharded", "long", "replicated"):
            options["steps"] = 6
        elif name.startswith("unequal"):
            options |= {"shards": [texts, pictures], "data": unequal, "steps": 6}
            options["model"] |= VARIANTS[name.removeprefix("unequal_")]
        elif name == "validated":
            val = {"path": str(rows), "name": "val", **TRANSFORMS}
            options["data"] = {"validation": [val]}
            options["trainer"] = {"val_check_interval": 8 // ranks}
        elif name == "half":
            options["model"] |= {"compute_dtype": "bfloat16"}
        elif name == "read":
            options |= {"model": checkpoint, "steps": 1, "journal": {"watch_reads": ranks == 2}}
        else:
            options["model"] |= (VARIANTS | SHARDED_ONLY | SHORTEST)[name]
            options |= {"steps": 2, "packs_per_step": 2} if name in SHORTEST else {}
        sharded = ranks == 2 or name == "sharded"
        return Run(
            folder=folder / f"{name}{ranks}",
            ranks=ranks,
            replicas=(2 if name == "replicated" else 1) if sharded else None,
            **options,
        )

    unequals = [f"unequal_{name}" for name in VARIANTS]
    launch(1, *[make(n, 1) for n in ("long", "sharded", *VARIANTS, *unequals, *OTHERS, "adapted")])
    shared = ("long", "replicated", *VARIANTS, *unequals, *SHARDED_ONLY, *OTHERS, "budget")
    launch(2, *[make(n, 2) for n in shared])
    return make


def check_same(first: Run, second: Run, tolerance: float = 1e-6) -> None:
    assert first.batches() == second.batches()
    losses, others = first.losses(), second.losses()
    assert len(losses) == first.steps
    assert others == pytest.approx(losses, abs=2e-6)
    found = difference(first.weights(), second.weights())
    assert found <= tolerance, found


def test_one_shard_equals_one_device(runs: Runs) -> None:
    check_same(runs("long", 1), runs("sharded", 1), tolerance=0)


@pytest.mark.parametrize("name", ["long", "replicated"])
def test_two_ranks_equal_one_device(name: str, runs: Runs) -> None:
    check_same(runs("long", 1), runs(name, 2))


@pytest.mark.parametrize(("name", "ranks"), [("long", 1), ("long", 2), ("replicated", 2)])
def test_every_rank_logs_the_loss_of_the_whole_step(name: str, ranks: int, runs: Runs) -> None:
    run = runs(name, ranks)
    for rank in range(ranks):
        lines = run.lines("losses", rank)
        logged = {line["step"]: line["logged"] for line in lines if line["logged"] is not None}
        assert logged == pytest.approx(run.losses(), abs=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_trained_parts(name: str, runs: Runs) -> None:
    check_same(runs(name, 1), runs(name, 2))


@pytest.mark.parametrize("name", SHARDED_ONLY)
def test_saving_memory_changes_no_result(name: str, runs: Runs) -> None:
    check_same(runs("whole", 1), runs(name, 2))


def test_compiled_adapters_with_a_memory_budget_give_the_same(runs: Runs) -> None:
    check_same(runs("adapted", 1), runs("budget", 2), tolerance=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_ranks_with_only_texts_or_images(name: str, runs: Runs) -> None:
    run = runs(f"unequal_{name}", 2)
    check_same(runs(f"unequal_{name}", 1), run)
    pairs = list(zip(run.lines("batches", 0), run.lines("batches", 1), strict=True))
    assert any(_is_text(a) and _is_picture(b) for a, b in pairs)
    assert any(not a["uids"] or not b["uids"] for a, b in pairs), "no filler"
    for rank in (0, 1):
        found = run.lines("gradients", rank)
        assert len(found) == run.steps
        assert all(line["trained"] and not line["lacking"] for line in found)


def _is_text(line: dict[str, Any]) -> bool:
    return bool(line["ce"]) and not line["mse"] and not line["vit"]


def _is_picture(line: dict[str, Any]) -> bool:
    return bool(line["mse"]) and not line["ce"]


def test_validation_equals_one_device(runs: Runs) -> None:
    check_same(runs("validated", 1), runs("validated", 2))
    one, two = (runs("validated", ranks).lines("validations", 0) for ranks in (1, 2))
    assert len(one) == len(two) == 2
    for found, wanted in zip(two, one, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
        assert found.keys() == {"val/val/ce", "val/val/accuracy", "val/val/mse"}


def test_half_precision_keeps_master_weights(runs: Runs) -> None:
    one, two = runs("half", 1), runs("half", 2)
    assert two.losses() == pytest.approx(one.losses(), rel=0.01)
    weights = two.weights()
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert difference(one.weights(), weights) < 1e-3
    assert 0 < difference(runs("whole", 2).weights(), weights) < 1e-2


def test_each_rank_reads_only_its_rows(runs: Runs, golden: Path) -> None:
    run = runs("read", 2)
    check_same(runs("read", 1), run)
    stored = load_file(golden / "tiny_bagel" / "ema.safetensors")
    halves = [sum(line["bytes"] for line in run.lines("reads", rank)) for rank in (0, 1)]
    assert sum(halves) == sum(tensor.nbytes for tensor in stored.values())
    assert max(halves) < 0.6 * sum(halves)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of this process only."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
    torch.distributed.destroy_process_group()


def build(folder: Path, mesh: DeviceMesh, **overrides: Any) -> dict[str, torch.Tensor]:
    model = build_network(
        ModelSource(checkpoint=str(folder), overrides=overrides).config(),
        str(folder),
        mesh,
        device=torch.device("cpu"),
        precision=Precision(params=torch.float32, compute=torch.float32),
        parallelism=Parallelism(),
        prepare=lambda model: None,
        seed=0,
    )
    return {n: t.full_tensor() for n, t in model.state_dict().items()}  # type: ignore[attr-defined]


def copied(golden: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Copies the tiny checkpoint and changes its weights."""
    for path in (golden / "tiny_bagel").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(golden / "tiny_bagel" / "ema.safetensors")
    change(weights)
    save_file(weights, folder / "ema.safetensors")
    return folder


TABLE = "latent_pos_embed.pos_embed"


@pytest.mark.parametrize(
    ("change", "overrides"),
    [
        (lambda weights: None, {}),
        (lambda weights: weights.pop(TABLE), {}),
        (lambda weights: weights.update({TABLE: weights[TABLE][:9].clone()}), {}),
        (lambda weights: None, {"max_latent_size": 5}),
    ],
    ids=["as it is", "no table", "smaller table", "another size"],
)
def test_sharded_build_equals_one_device(
    change: Any, overrides: dict[str, Any], golden: Path, tmp_path: Path, mesh: DeviceMesh
) -> None:
    checkpoint = copied(golden, tmp_path, change)
    wanted = Bagel.from_checkpoint(checkpoint, dtype=torch.float32, **overrides).state_dict()
    assert difference(build(checkpoint, mesh, **overrides), wanted) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("llm2vae.bias"), "1 missing: llm2vae.bias"),
        (lambda w: w.update(more=torch.ones(1)), "1 unexpected: more"),
        (lambda w: w.update({"llm2vae.bias": torch.ones(3)}), "1 wrong-shaped: llm2vae.bias"),
    ],
)
def test_keys_are_audited(
    change: Any, words: str, golden: Path, tmp_path: Path, mesh: DeviceMesh
) -> None:
    with pytest.raises(DataError, match=words):
        build(copied(golden, tmp_path, change), mesh)


def test_replicas_that_do_not_fit(tmp_path: Path) -> None:
    rows = interleaved_shards(tmp_path / "rows", 8)
    init = {"replicas": 3, "shards": "auto"}
    strategy = "mathcanvas_lightning.training.strategy.ShardedStrategy"
    trainer = {"strategy": {"class_path": strategy, "init_args": init}}
    run = Run(folder=tmp_path / "run", shards=[rows], trainer=json.loads(json.dumps(trainer)))
    launch(1, run)
    assert "replicas 3, shards auto, on 1 ranks" in run.error()
