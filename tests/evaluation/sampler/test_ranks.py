"""Ranks share the sampled answers, whether the network is sharded or copied."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.records.files import read_records
from tests.data.make_rows import interleaved_shards
from tests.training.launch import TRANSFORMS, Journal, Run, difference, launch

pytestmark = pytest.mark.slow

SAMPLER = {
    "class_path": "mathcanvas_lightning.AnswerSampler",
    "init_args": {
        "num_records": 3,
        "sampling": {"temperature": 0.7, "max_tokens": 12},
        "generation": {
            "drawing": {"text_scale": 2.0, "num_timesteps": 3},
            "max_steps": 2,
            "max_images": 1,
            "max_context_tokens": 400,
        },
    },
}


class Breaks(Journal):
    """The generator of the last rank stops with an error."""

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        super().setup(trainer, module, stage)
        if trainer.global_rank == trainer.world_size - 1:
            module.original = BagelBackend.use
            BagelBackend.use = _fail  # type: ignore[assignment]

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        if hasattr(module, "original"):
            BagelBackend.use = module.original  # type: ignore[method-assign]


def _fail(*args: Any, **options: Any) -> None:
    raise RuntimeError("a broken device")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """Runs on one rank and on two, most of them with a sampler."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = interleaved_shards(folder / "rows", 30)

    def make(name: str, ranks: int, replicas: int | None, journal: str = "launch.Journal") -> Run:
        own = {"folder": str(folder / name / "journal")}
        module = "tests.evaluation.sampler.test_ranks.Breaks" if name == "broken" else None
        callbacks: list[Any] = [
            {"class_path": module or "tests.training.launch.Journal", "init_args": own}
        ]
        if name != "without":
            records = {"path": str(rows), "name": "held"}
            arguments = {**SAMPLER["init_args"], "records": records}  # type: ignore[dict-item]
            callbacks.append({**SAMPLER, "init_args": arguments})
        trainer: dict[str, Any] = {"val_check_interval": 4 // ranks, "callbacks": callbacks}
        return Run(
            folder=folder / name,
            shards=[rows],
            ranks=ranks,
            replicas=replicas,
            steps=2,
            model={"optimizer": {"lr": 1e-3, "eps": 1e-4}, "ema": {"decay": 0.5}},
            data={"validation": [{"path": str(rows), "name": "val", **TRANSFORMS}]},
            trainer=trainer if replicas or ranks == 1 else {**trainer, "strategy": "ddp"},
        )

    found = {
        "one": make("one", 1, None),
        "copied": make("copied", 2, None),
        "sharded": make("sharded", 2, 1),
        "without": make("without", 2, 1),
        "broken": make("broken", 2, 1),
    }
    launch(1, found["one"])
    launch(2, *(found[name] for name in ("copied", "sharded", "without", "broken")))
    return found


def answers(run: Run, step: int) -> list[Any]:
    [path] = run.folder.rglob(f"answers/held/step_{step}.parquet")
    return list(read_records(path))


@pytest.mark.parametrize("name", ["copied", "sharded"])
def test_answers_equal_those_of_one_rank(name: str, runs: Mapping[str, Run]) -> None:
    for step in (1, 2):
        wanted, found = answers(runs["one"], step), answers(runs[name], step)
        assert len(wanted) == 3
        assert all(isinstance(record["model_answer"], str) for record in wanted)
        assert [one["model_answer"] for one in found] == [one["model_answer"] for one in wanted]


def test_sharded_training_does_not_change(runs: Mapping[str, Run]) -> None:
    with_answers, without = runs["sharded"], runs["without"]
    assert with_answers.losses() == without.losses()
    assert difference(with_answers.weights(), without.weights()) == 0


def test_an_error_on_one_rank_fails_its_share_only(runs: Mapping[str, Run]) -> None:
    run = runs["broken"]
    assert run.losses() == runs["without"].losses()
    errors = [record.get("model_answer_error") for record in answers(run, 2)]
    assert errors == [None, "generation: RuntimeError: a broken device", None]
    [path] = Path(run.folder).rglob("answers/held/step_2.parquet_scores.json")
    assert path.is_file()
