"""With a real Trainer: interrupted runs train on the same samples, on any number of ranks."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from mathcanvas_lightning.errors import ConfigError
from tests.conftest import TRAINER_WARNINGS, read_jsonl
from tests.data.make_rows import config, interleaved_shards, module, new_module
from tests.data.training import fit
from tests.ranks import run_ranks

pytestmark = pytest.mark.filterwarnings(
    *TRAINER_WARNINGS,
    "ignore:The dirpath has changed",
    "ignore:.*callbacks used to create the checkpoint",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 60)


Steps = dict[tuple[int, int], list[str]]


def journal(folder: Path) -> Steps:
    """(epoch, step) -> digests, over all ranks."""
    steps: Steps = {}
    for path in sorted(folder.glob("journal.*.jsonl")):
        for line in read_jsonl(path):
            steps.setdefault((line["epoch"], line["step"]), []).append(line["digest"])
    return {key: sorted(found) for key, found in steps.items()}


def checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step{step}.ckpt"


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("whole")
    fit(shards, folder / "journal", packs_per_step=4)
    return journal(folder)


def until(steps: Steps, count: int) -> Steps:
    return dict(list(steps.items())[:count])


@pytest.mark.slow
@pytest.mark.parametrize("ask_for_steps", [False, True])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
def test_an_interrupted_run_resumes(
    stop: int, ask_for_steps: bool, shards: Path, whole: Steps, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    options = {"packs_per_step": 4, "ask_for_steps": ask_for_steps}
    fit(shards, first / "journal", stop=stop, **options)
    assert journal(first) == until(whole, stop)
    fit(shards, second / "journal", resume=checkpoint(first, stop), workers=1, **options)
    assert {**journal(first), **journal(second)} == whole
    assert len(journal(first)) + len(journal(second)) == len(whole)


def test_number_of_steps_is_exact(shards: Path, whole: Steps, tmp_path: Path) -> None:
    data = module(config(shards), packs_per_step=4)
    assert data.total_steps(2) == len(whole)
    trainer = fit(shards, tmp_path / "journal", packs_per_step=4, ask_for_steps=True)
    assert trainer.global_step == len(whole)
    asked = trainer.lightning_module.steps_asked
    assert asked == 2 * data.total_steps(1)


def test_max_steps(shards: Path, whole: Steps, tmp_path: Path) -> None:
    fit(shards, tmp_path / "journal", packs_per_step=4, max_steps=6)
    assert journal(tmp_path) == until(whole, 6)


@pytest.mark.parametrize("max_steps", [-1, 7])
def test_saved_at_the_end_of_an_epoch(
    max_steps: int, shards: Path, whole: Steps, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    saver = ModelCheckpoint(first, "end", save_on_train_epoch_end=True, every_n_epochs=1)
    fit(shards, first / "journal", packs_per_step=4, epochs=1, checkpoints=saver)
    fit(
        shards, second / "journal", packs_per_step=4, resume=first / "end.ckpt", max_steps=max_steps
    )
    wanted = whole if max_steps < 0 else until(whole, max_steps)
    assert {**journal(first), **journal(second)} == wanted


@pytest.mark.slow
def test_saved_after_validation(shards: Path, whole: Steps, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    saver = ModelCheckpoint(first, "end", save_on_train_epoch_end=False, every_n_epochs=1)
    fit(shards, first / "journal", packs_per_step=4, epochs=1, checkpoints=saver, validate=True)
    fit(shards, second / "journal", packs_per_step=4, resume=first / "end.ckpt", validate=True)
    assert {**journal(first), **journal(second)} == whole


def test_resuming_with_other_packs_per_step(shards: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    fit(shards, first / "journal", packs_per_step=4, stop=2)
    resume = checkpoint(first, 2)
    fit(shards, second / "journal", packs_per_step=2, resume=resume, epochs=2)
    trained: dict[int, list[str]] = {0: [], 1: []}
    for folder in (first, second):
        for line in read_jsonl(folder / "journal.0.jsonl"):
            trained[line["epoch"]] += line["uids"]
    for epoch in (0, 1):
        assert sorted(trained[epoch]) == sorted(f"row{n}" for n in range(60))


@pytest.mark.parametrize(("before", "after"), [(4, 3), (3, 4), (4, 2)])
def test_a_step_is_never_mixed_from_two_steps_of_the_plan(
    before: int, after: int, shards: Path, tmp_path: Path
) -> None:
    """Killed twice in an epoch, with another accumulation after the first time."""
    trained: list[dict[str, Any]] = []
    resume: Path | None = None
    for part, (packs_per_step, stop) in enumerate([(before, 1), (after, 3), (after, None)]):
        folder = tmp_path / str(part)
        folder.mkdir()
        options = {"packs_per_step": packs_per_step, "stop": stop, "resume": resume}
        fit(shards, folder / "journal", epochs=1, **options)
        steps: dict[int, list[int]] = {}
        for line in read_jsonl(folder / "journal.0.jsonl"):
            steps.setdefault(line["optimizer_step"], []).append(line["step"])
            trained.append(line)
        assert all(len(found) == packs_per_step for found in steps.values())
        assert all(len(set(found)) == 1 for found in steps.values())
        resume = checkpoint(folder, stop) if stop else None
    found = sorted(uid for line in trained for uid in line["uids"])
    assert found == sorted(f"row{n}" for n in range(60))


@pytest.mark.slow
@pytest.mark.parametrize("max_epochs", [-1, 3])
@pytest.mark.parametrize("how", ["trainer.save_checkpoint", "at the end of the epoch"])
def test_resuming_after_max_steps(
    how: str, max_epochs: int, shards: Path, whole: Steps, tmp_path: Path
) -> None:
    """The last steps of an epoch are not skipped, though the Trainer takes it as complete."""
    stops = (2, 3, 6, 7)
    found: Steps = {}
    resume: Path | None = None
    for stop in stops:
        folder = tmp_path / str(stop)
        folder.mkdir()
        saver = ModelCheckpoint(folder, "end", save_on_train_epoch_end=True, every_n_epochs=1)
        trainer = fit(
            shards,
            folder / "journal",
            packs_per_step=4,
            resume=resume,
            max_steps=stop,
            epochs=max_epochs,
            checkpoints=saver,
        )
        resume = folder / "end.ckpt"
        if how == "trainer.save_checkpoint":
            resume = folder / "saved.ckpt"
            trainer.save_checkpoint(resume)
        part = journal(folder)
        assert not part.keys() & found.keys()
        found |= part
    assert found == until(whole, stops[-1])


def test_continuing_with_the_same_trainer(shards: Path, whole: Steps, tmp_path: Path) -> None:
    trainer = fit(shards, tmp_path / "journal", packs_per_step=4, max_steps=3)
    for max_steps in (5, 7):
        trainer.fit_loop.epoch_loop.max_steps = max_steps
        trainer.fit(trainer.lightning_module, trainer.datamodule)
        assert journal(tmp_path) == until(whole, max_steps)


def test_an_epoch_that_is_limited_ends_there(shards: Path, whole: Steps, tmp_path: Path) -> None:
    """With limit_train_batches, each epoch has its first steps, before and after a stop."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    options = {"packs_per_step": 4, "limit_train_batches": 8}
    fit(shards, first / "journal", stop=2, **options)
    fit(shards, second / "journal", resume=checkpoint(first, 2), **options)
    wanted = {key: value for key, value in whole.items() if key[1] < 2}
    assert {**journal(first), **journal(second)} == wanted


def test_overfitting_repeats_the_same_packs(shards: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path / "journal", packs_per_step=1, epochs=3, overfit_batches=2)
    digests = [line["digest"] for line in read_jsonl(tmp_path / "journal.0.jsonl")]
    assert len(digests) == 6
    assert digests[:2] == digests[2:4] == digests[4:]
    assert digests[0] != digests[1]


def test_wrong_accumulation_is_an_error(shards: Path) -> None:
    from lightning.pytorch import Trainer

    data = new_module(config(shards), packs_per_step=4)
    data.prepare_data()
    trainer = Trainer(accelerator="cpu", accumulate_grad_batches=3, logger=False)
    trainer.datamodule = data
    data.trainer = trainer
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches.*found 3; wanted 4"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "is_whole"),
    [
        ({"limit_train_batches": 3}, False),
        ({"limit_train_batches": 0.5}, False),
        ({"overfit_batches": 1}, False),
        ({"overfit_batches": 0.25}, False),
        ({"limit_train_batches": 4}, True),
        ({"limit_train_batches": 0}, True),
        ({"limit_train_batches": 1.0}, True),
        ({"overfit_batches": 2}, True),
        ({"fast_dev_run": 1}, True),
    ],
)
def test_no_option_cuts_a_step(shards: Path, options: dict[str, Any], is_whole: bool) -> None:
    from lightning.pytorch import Trainer

    data = new_module(config(shards))
    trainer = Trainer(accelerator="cpu", accumulate_grad_batches=2, logger=False, **options)
    data.trainer = trainer
    if is_whole:
        data.setup("fit")
        return
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=f"trainer.{name}: found {value}; wanted a multiple of 2"):
        data.setup("fit")


@pytest.mark.slow
def test_resuming_on_other_real_ranks(shards: Path, whole: Steps, tmp_path: Path) -> None:
    """4 ranks without workers, then 2 with 1 each, then 1 with 2."""
    found: Steps = {}
    resume = None
    for ranks, workers, stop in ((4, 0, 2), (2, 1, 5), (1, 2, None)):
        folder = tmp_path / f"{ranks}"
        folder.mkdir()
        run_ranks(
            ranks,
            folder,
            partial(fit, shards, ranks=ranks),
            journal=folder / "journal",
            packs_per_step=4,
            workers=workers,
            stop=stop,
            resume=resume,
        )
        part = journal(folder)
        assert not part.keys() & found.keys()
        found |= part
        resume = checkpoint(folder, stop) if stop else None
    assert found == whole


def test_a_limit_below_what_is_done_is_named(shards: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path / "journal", packs_per_step=4, stop=2)
    resumed = partial(fit, packs_per_step=4, resume=checkpoint(tmp_path, 2))
    for limit in (4, 8):
        with pytest.raises(ConfigError, match=rf"limit_train_batches: found {limit}, with 8 micro"):
            resumed(shards, tmp_path / "more", limit_train_batches=limit)
    resumed(shards, tmp_path / "more", limit_train_batches=12, max_steps=3)
    assert list(journal(tmp_path)) == [(0, 0), (0, 1)]
