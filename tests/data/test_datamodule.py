"""The data module: the same tensors for any ranks and workers, and after any interruption."""

import dataclasses
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import docstring_parser
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Trainer

from mathcanvas_lightning.batch import LossTotals, MicroBatch
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.loading.config import DataSettings, WorkerConfig
from mathcanvas_lightning.data.plan import epoch as epoch_module
from mathcanvas_lightning.data.plan.position import EXPLAINING
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT, DropoutConfig
from mathcanvas_lightning.data.sequence.tokenizer import BYTE_TOKENIZER
from mathcanvas_lightning.errors import ConfigError, DataError
from mathcanvas_lightning.storage.config import StorageConfig
from tests.conftest import png
from tests.data.hashes import by_step, digest, uids
from tests.data.make_rows import (
    config,
    edit_shards,
    interleaved_row,
    interleaved_shards,
    module,
    new_module,
    t2i_shards,
    vlm_file,
    write_shards,
)

NUM_ROWS = 60
OPTIONS = {
    *("tokenizer", "train", "validation", "max_num_tokens", "max_num_tokens_per_sample"),
    *("packs_per_step", "overlong", "dropout", "seed", "workers", "index_workers", "index_dir"),
    *("max_bad_fraction", "quarantine_file", "geometry", "interpolate_positions"),
    *("image_limits", "storage", "progress"),
}
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Inherited(MathCanvasDataModule):
    """A subclass without a constructor."""


class Extended(MathCanvasDataModule):
    """A subclass with one more option."""

    def __init__(self, *args: Any, more: int = 0, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.more = more


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", NUM_ROWS)


@pytest.fixture
def mixture(tmp_path: Path) -> list[Any]:
    return [
        config(interleaved_shards(tmp_path / "reason", 12)),
        config(t2i_shards(tmp_path / "captions", 10), "t2i"),
        config(edit_shards(tmp_path / "edits", 8), "edit"),
        config(vlm_file(tmp_path / "talks", 6), "vlm"),
    ]


@pytest.mark.parametrize(
    "module_class", [MathCanvasDataModule, Inherited, Extended], ids=lambda found: found.__name__
)
def test_options_of_the_command_line(
    module_class: type, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MathCanvasDataModule, "data")
    name = f"{module_class.__module__}.{module_class.__name__}"
    given = ["--data.init_args.workers.num_workers=0", "--data.init_args.storage.max_retries", "1"]
    found = parser.parse_args([f"--data={name}", *given, "--data.init_args.seed=3"])
    options = found.data.init_args
    assert set(options.keys(branches=True)) >= OPTIONS
    assert options.max_bad_fraction == 0
    data = parser.instantiate(found).data
    assert data.settings == DataSettings(
        seed=3, workers=WorkerConfig(num_workers=0), storage=StorageConfig(max_retries=1)
    )
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={name}"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--data.overlong {refuse,quarantine} What to do with samples" in text
    with pytest.raises(ArgumentError, match="sead"):
        parser.parse_args([f"--data={name}", "--data.init_args.sead=3"])


def test_unknown_settings_are_an_error() -> None:
    with pytest.raises(TypeError, match="sead"):
        MathCanvasDataModule(sead=3)


def test_settings_are_documented() -> None:
    names = [member.name for member in dataclasses.fields(DataSettings)]
    listed = [one.arg_name for one in docstring_parser.parse(DataSettings.__doc__ or "").params]
    assert listed == names
    described = docstring_parser.parse(MathCanvasDataModule.__doc__ or "").params[-1].description
    assert described is not None
    assert described.split(": ")[1].rstrip(".").replace("\n", " ").split(", ") == names


def test_each_sample_of_all_formats_occurs_once_an_epoch(mixture: list[Any]) -> None:
    data = module(*mixture, packs_per_step=3)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    counts = Counter((s.dataset, s.uid) for batch in batches for s in batch.samples)
    assert len(counts) == 36
    assert set(counts.values()) == {1}
    assert {dataset for dataset, _ in counts} == {"reason", "captions", "edits", "talks"}
    assert all(batch.pack.sequence_length <= 400 for batch in batches)
    second = list(data.train_dataloader())
    assert {b.epoch for b in second} == {1}
    assert sorted(uids(second)) == sorted(uids(batches))
    assert uids(second) != uids(batches)


def test_step_totals_equal_those_of_the_packs(mixture: list[Any]) -> None:
    data = module(*mixture, packs_per_step=3, dropout=DropoutConfig(text=0.4, vit=0.4, vae=0.4))
    for _, step in itertools.groupby(data.train_dataloader(), lambda b: b.step):
        batches = list(step)
        found = [LossTotals.of(batch.pack) for batch in batches]
        wanted = batches[0].step_totals
        assert {batch.step_totals for batch in batches} == {wanted}
        assert sum(f.ce_tokens for f in found) == wanted.ce_tokens
        assert sum(f.mse_tokens for f in found) == wanted.mse_tokens
        assert sum(f.ce_square for f in found) == pytest.approx(wanted.ce_square)
        assert sum(f.ce_sample for f in found) == pytest.approx(wanted.ce_sample)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (4, 2)])
def test_same_steps_for_any_ranks_and_workers(ranks: int, workers: int, mixture: list[Any]) -> None:
    wanted = by_step(module(*mixture, packs_per_step=4).train_dataloader())
    found: dict[tuple[int, int], list[str]] = {}
    lengths = set()
    for rank in range(ranks):
        data = module(*mixture, packs_per_step=4, workers=WorkerConfig(num_workers=workers))
        data.use_rank(rank, ranks)
        loader = data.train_dataloader()
        lengths.add(len(loader))
        for key, digests in by_step(loader).items():
            found[key] = sorted([*found.get(key, []), *digests])
    assert found == wanted
    assert len(lengths) == 1


@pytest.mark.slow
def test_spawned_workers(shards: Path) -> None:
    wanted = [digest(b) for b in module(config(shards)).train_dataloader()]
    spawned = WorkerConfig(num_workers=1, start_method="spawn", prefetch_factor=1)
    assert [digest(b) for b in module(config(shards), workers=spawned).train_dataloader()] == wanted


@pytest.fixture(scope="module")
def two_epochs(shards: Path) -> dict[tuple[int, int], list[str]]:
    whole = module(config(shards), packs_per_step=4)
    return by_step([*whole.train_dataloader(), *whole.train_dataloader()])


@pytest.mark.parametrize("stop", [0, pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_resumes_on_other_ranks(
    stop: int,
    before: int,
    after: int,
    shards: Path,
    two_epochs: dict[tuple[int, int], list[str]],
) -> None:
    found: dict[tuple[int, int], list[str]] = {}
    states = []
    for rank in range(before):
        data = module(config(shards), packs_per_step=4)
        data.use_rank(rank, before)
        # A batch counts as processed when the next one is requested.
        taken = list(itertools.islice(data.train_dataloader(), stop * 4 // before + 1))[:-1]
        collect(found, taken)
        states.append(json.loads(json.dumps(data.state_dict())))
    assert all(state == states[0] for state in states)
    for rank in range(after):
        data = module(config(shards), packs_per_step=4)
        data.use_rank(rank, after)
        data.load_state_dict(states[0])
        loader = data.train_dataloader()
        rest = list(loader)
        assert len(rest) == len(loader) - stop * 4 // after
        collect(found, [*rest, *data.train_dataloader()])
    assert found == two_epochs


def collect(found: dict[tuple[int, int], list[str]], batches: list[MicroBatch]) -> None:
    for key, digests in by_step(batches).items():
        found[key] = sorted([*found.get(key, []), *digests])


def test_changing_packs_per_step_within_an_epoch(shards: Path) -> None:
    first = module(config(shards), packs_per_step=4)
    taken = list(itertools.islice(first.train_dataloader(), 9))[:-1]
    second = module(config(shards), packs_per_step=2)
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["segments"] == [[4, 2]]
    taken += list(itertools.islice(second.train_dataloader(), 5))[:-1]
    third = module(config(shards), packs_per_step=3)
    third.load_state_dict(second.state_dict())
    rest = list(third.train_dataloader())
    assert sorted(uids([*taken, *rest])) == sorted(f"row{n}" for n in range(NUM_ROWS))
    assert {b.epoch for b in third.train_dataloader()} == {1}


def test_state_is_small_and_plain(shards: Path) -> None:
    data = module(config(shards))
    state = data.state_dict()
    assert len(json.dumps(state)) < 2500
    list(data.train_dataloader())
    assert data.state_dict() == {**state, "epoch": 1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "data.seed: 0, now 1"),
        ({"max_num_tokens": 500}, "data.max_num_tokens: 400, now 500"),
        ({"dropout": DropoutConfig(text=0.5)}, "data.dropout.text: 0.1, now 0.5"),
        ({"interpolate_positions": True}, "data.interpolate_positions: False, now True"),
    ],
)
def test_resuming_with_other_settings(change: dict[str, Any], named: str, shards: Path) -> None:
    state = module(config(shards)).state_dict()
    with pytest.raises(ConfigError, match=f"differs in: {re.escape(named)};"):
        module(config(shards), **change).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": 2.0}, "weight of the data set rows: null, now 2.0"),
        ({"fraction": 0.5}, "fraction of the data set rows: 1.0, now 0.5"),
        (
            {"vae_transform": ImageTransform(max_image_size=48, min_image_size=32)},
            "vae_transform.max_image_size of the data set rows: 64, now 48",
        ),
    ],
)
def test_resuming_with_another_data_set(change: dict[str, Any], named: str, shards: Path) -> None:
    state = module(config(shards)).state_dict()
    with pytest.raises(ConfigError, match=f"differs in: {re.escape(named)};"):
        module(config(shards, **change)).load_state_dict(state)
    del state["values"]  # as in checkpoints of earlier versions
    with pytest.raises(ConfigError, match="differs in: data set rows;"):
        module(config(shards, **change)).load_state_dict(state)


def test_resuming_with_other_data(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path / "set", 8)
    state = module(config(folder)).state_dict()
    interleaved_shards(folder, 9)
    with pytest.raises(
        ConfigError, match=r"differs in: contents of the data set set: 8 rows .*, now 9 rows "
    ):
        module(config(folder)).load_state_dict(state)
    with pytest.raises(ConfigError, match="version 0"):
        module(config(folder)).load_state_dict({**state, "version": 0})


def test_resuming_with_reordered_data_sets(tmp_path: Path) -> None:
    sets = [config(interleaved_shards(tmp_path / name, 30)) for name in "ab"]
    data = module(*sets, packs_per_step=2)
    states = [data.state_dict()]
    list(itertools.islice(data.train_dataloader(), 7))
    states.append(data.state_dict())
    for state in states:
        module(*sets, packs_per_step=2).load_state_dict(state)
        with pytest.raises(ConfigError, match=r"differs in: names in data\.train: a, b, now b, a;"):
            module(*reversed(sets), packs_per_step=2).load_state_dict(state)


def test_resuming_with_other_image_limits(tmp_path: Path) -> None:
    rows = [interleaved_row(n) for n in range(30)]
    for row in rows[::5]:
        row["question_images"][0]["bytes"] = png(200, 200, "red")
    folder = config(write_shards(tmp_path / "set", rows))
    options = {"max_bad_fraction": 1.0, "quarantine_file": str(tmp_path / "left_out.jsonl")}
    data = module(folder, **options)
    list(itertools.islice(data.train_dataloader(), 5))
    state = data.state_dict()
    assert state["step"] == 4
    unchanged = module(folder, image_limits=ImageLimits(max_pixels=10**6), **options)
    unchanged.load_state_dict(state)  # other limits, but the same rows
    with pytest.raises(ConfigError, match="max_pixels: 64000000, now 10000;"):
        module(folder, image_limits=ImageLimits(max_pixels=10**4), **options).load_state_dict(state)


def test_resuming_with_another_tokenizer(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(BYTE_TOKENIZER, tmp_path / ("long" * 20))  # its digest is not shown
    state = module(config(shards)).state_dict()
    unchanged = module(config(shards), tokenizer=str(copy))
    unchanged.load_state_dict(state)
    path = copy / "tokenizer.json"
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(found))
    for saved in (state, unchanged.state_dict()):
        with pytest.raises(ConfigError, match=r"differs in: (data\.)?tokenizer"):
            module(config(shards), tokenizer=str(copy)).load_state_dict(saved)


def test_resuming_with_moved_data(tmp_path: Path) -> None:
    """Its name is kept by `name`, since the last part of its path differs."""
    whole = list(module(config(interleaved_shards(tmp_path / "set", 30))).train_dataloader())
    data = module(config(tmp_path / "set"))
    states = [data.state_dict()]
    taken = list(itertools.islice(data.train_dataloader(), 4))[:-1]
    states.append(data.state_dict())
    (tmp_path / "set").rename(tmp_path / "moved")
    for state in states:
        moved = module(config(tmp_path / "moved", name="set", image_dir=str(tmp_path)))
        moved.load_state_dict(state)
    assert [digest(b) for b in [*taken, *moved.train_dataloader()]] == [digest(b) for b in whole]
    with pytest.raises(ConfigError, match="data set moved, which is new"):
        module(config(tmp_path / "moved")).load_state_dict(state)


def test_a_plan_that_no_setting_explains_is_refused(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(config(shards))
    list(itertools.islice(data.train_dataloader(), 3))
    state = data.state_dict()
    monkeypatch.setattr(epoch_module, "KEPT_QUARTERS", 2)
    monkeypatch.setattr(epoch_module, "WINDOW_ROWS", 10)  # as another version may have it
    with pytest.raises(ConfigError, match="another version of this library or numpy"):
        module(config(shards)).load_state_dict(state)


def test_states_of_version_1_resume(shards: Path) -> None:
    whole = list(module(config(shards), packs_per_step=2).train_dataloader())
    data = module(config(shards), packs_per_step=2)
    taken = list(itertools.islice(data.train_dataloader(), 5))[:-1]
    state = data.state_dict()
    topics = state["fingerprint"].items() - {(n, state["fingerprint"][n]) for n in EXPLAINING}
    old = {name: state[name] for name in ("epoch", "segments", "packs_per_step", "step")}
    resumed = module(config(shards), packs_per_step=2)
    resumed.load_state_dict({**old, "version": 1, "fingerprint": dict(topics)})
    rest = list(resumed.train_dataloader())
    assert [digest(b) for b in [*taken, *rest]] == [digest(b) for b in whole]


def test_epochs_in_a_plain_loop(shards: Path) -> None:
    """Epochs differ in length; one loader yields them one after the other."""
    data = module(config(shards), dropout=DropoutConfig(text=0.5, vit=0.5, vae=0.5))
    loader = data.train_dataloader()
    lengths = set()
    for epoch in range(4):
        found = list(loader)
        lengths.add(len(found))
        assert len(loader) == len(found)
        assert {batch.epoch for batch in found} == {epoch}
        assert sorted(uids(found)) == sorted(f"row{n}" for n in range(NUM_ROWS))
    assert len(lengths) > 1
    next(iter(loader))  # an iteration that is left starts its epoch again
    assert sorted(uids(loader)) == sorted(f"row{n}" for n in range(NUM_ROWS))


def test_the_steps_of_a_second_trainer(shards: Path) -> None:
    data = module(config(shards))
    for accumulate in (1, 4):
        trainer = Trainer(
            accelerator="cpu",
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
        )
        trainer.datamodule = data
        data.trainer = trainer
        data.setup("fit")
        assert data.position.packs_per_step == accumulate
        assert data.total_steps(1) == -(-data.plan.num_packs(0) // accumulate)
    data.packs_per_step = 3
    with pytest.raises(ConfigError, match="accumulate_grad_batches"):
        data.setup("fit")


def test_state_within_an_accumulation(shards: Path) -> None:
    data = module(config(shards), packs_per_step=2)
    batches = iter(data.train_dataloader())
    steps = []
    for _ in range(5):  # the current batch is not processed yet
        next(batches)
        steps.append(data.state_dict()["step"])
    assert steps == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(("ranks", "workers"), [(8, 0), (2, 4)])
def test_fewer_row_groups_than_workers(ranks: int, workers: int, tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path, 25, num_files=1, rows_per_group=613)
    found: list[str] = []
    lengths = set()
    for rank in range(ranks):
        data = module(
            config(folder), packs_per_step=ranks, workers=WorkerConfig(num_workers=workers)
        )
        data.use_rank(rank, ranks)
        batches = list(data.train_dataloader())
        lengths.add(len(batches))
        found += uids(batches)
    assert sorted(found) == sorted(f"row{n}" for n in range(25))
    assert len(lengths) == 1


def test_one_row_and_an_empty_file(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [interleaved_row(0)], num_files=1)
    empty = write_shards(tmp_path / "empty", [interleaved_row(1)], num_files=1)
    write_empty(empty / "part_0.parquet")
    (empty / "part_0.parquet").rename(folder / "part_1.parquet")
    data = module(config(folder), packs_per_step=5)
    batches = list(data.train_dataloader())
    assert uids(batches) == ["row0"]
    assert [batch.is_filler for batch in batches] == [False, True, True, True, True]
    for filler in batches[1:]:
        assert filler.pack.sequence_length > 0
        assert len(filler.pack.vit_indexes) > 0 < len(filler.pack.latent_indexes)
        assert len(filler.pack.ce_indexes) == len(filler.pack.mse_indexes) == 0


def write_empty(path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).slice(0, 0), path)


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    rows = [{**interleaved_row(n), "answer": ""} for n in range(3)]
    with pytest.raises(DataError, match=r"no sample among 3 rows .*no answer"):
        module(config(write_shards(tmp_path, rows)))
    with pytest.raises(ConfigError, match="no data set"):
        module().train_dataloader()


def test_fraction_uses_the_same_rows_for_every_seed(shards: Path) -> None:
    parts = [
        sorted(uids(module(config(shards, fraction=0.4), seed=seed).train_dataloader()))
        for seed in (0, 1)
    ]
    assert parts[0] == parts[1]
    assert len(parts[0]) == NUM_ROWS * 0.4
    with pytest.raises(ConfigError, match="fraction"):
        module(config(shards, fraction=0.0))


def test_weights_are_exact_shares(mixture: list[Any], tmp_path: Path) -> None:
    weighted = [
        config(tmp_path / "reason", weight=1.0),
        config(tmp_path / "captions", "t2i", weight=2.0),
    ]
    batches = list(module(*weighted).train_dataloader())
    counts = Counter(s.dataset for b in batches for s in b.samples)
    assert counts == {"reason": 12, "captions": 24}
    with pytest.raises(ConfigError, match="weight"):
        module(config(tmp_path / "reason", weight=-1.0))


def test_overlong_rows(tmp_path: Path) -> None:
    rows = [interleaved_row(n, words=60 if n == 3 else 3) for n in range(6)]
    folder = write_shards(tmp_path, rows)
    with pytest.raises(DataError, match=r"1 of 6 samples longer than 400 tokens \(row3: \d+\)"):
        module(config(folder))
    ledger = tmp_path / "left.jsonl"
    data = module(config(folder), overlong="quarantine", quarantine_file=str(ledger))
    assert sorted(uids(data.train_dataloader())) == ["row0", "row1", "row2", "row4", "row5"]
    [line] = map(json.loads, ledger.read_text().splitlines())
    assert (line["uid"], line["stage"]) == ("row3", "too_long")


@pytest.mark.slow
def test_validation_sets(shards: Path, tmp_path: Path) -> None:
    data = MathCanvasDataModule(
        module().tokenizer.folder,
        validation=[config(shards), config(t2i_shards(tmp_path / "t2i", 5), "t2i")],
        max_num_tokens=400,
        max_num_tokens_per_sample=400,
        geometry=module().geometry,
        workers=WorkerConfig(num_workers=0),
        index_workers=0,
    )
    data.setup("validate")
    loaders = data.val_dataloader()
    first = [[digest(b) for b in loader] for loader in loaders]
    assert first == [[digest(b) for b in loader] for loader in data.val_dataloader()]
    assert sorted(uids(loaders[0])) == sorted(f"row{n}" for n in range(NUM_ROWS))
    assert [len(loader) for loader in loaders] == [len(found) for found in first]
    texts = [len(b.pack.ce_indexes) for b in loaders[0]]
    assert min(texts) > 0  # nothing is dropped


def test_packs_per_step_that_is_not_a_multiple_of_ranks(shards: Path) -> None:
    data = new_module(config(shards), packs_per_step=6)
    data.prepare_data()
    data.use_rank(0, 4)
    with pytest.raises(ConfigError, match="6, on 4 ranks"):
        data.setup()


def test_a_sample_must_fit_into_a_pack() -> None:
    with pytest.raises(ConfigError, match="max_num_tokens_per_sample"):
        module(max_num_tokens=100, max_num_tokens_per_sample=101)


@pytest.mark.parametrize(
    ("files", "held_out"),
    [
        (["train/a_000", "test/a_000"], "test"),
        (["data/Train/a_000", "data/Val/a_000"], "val"),
        (["data/train-00000-of-00001", "data/test-00000-of-00001"], "test"),
        (["train/a_000", "train/b_000"], None),
        (["train/test_000"], None),
        (["test/a_000"], None),
    ],
)
def test_training_on_test_rows_is_said(
    files: list[str], held_out: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = interleaved_shards(tmp_path / "made", 2, num_files=1) / "part_0.parquet"
    for file in files:
        path = tmp_path / "shards" / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shard.read_bytes())
    module(config(tmp_path / "shards"))
    found = re.search(r"includes the splits (\w+);", caplog.text)
    assert (found and found[1]) == held_out


def test_images_too_large_for_the_model(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path, 2)
    large = ImageTransform(max_image_size=160, min_image_size=160)
    with pytest.raises(ConfigError, match=r"vae_transform of .*10 tokens along a side"):
        module(config(folder, vae_transform=large))
    odd = ImageTransform(max_image_size=60, min_image_size=20, image_stride=10)
    with pytest.raises(ConfigError, match=r"image_stride .*found 10"):
        module(config(folder, vit_transform=odd))


def test_names_of_data_sets_are_unique(shards: Path) -> None:
    with pytest.raises(ConfigError, match="twice"):
        module(config(shards), config(shards))
    data = module(config(shards), config(shards, name="again"))
    assert len(uids(data.train_dataloader())) == 2 * NUM_ROWS


def test_loading_leaves_the_global_generator_unchanged(shards: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(module(config(shards), workers=WorkerConfig(num_workers=1)).train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_micro_batches_move_to_a_device(shards: Path) -> None:
    batch = next(iter(module(config(shards)).train_dataloader()))
    assert batch.to("meta").pack.text_ids.device.type == "meta"
    assert batch.to("cpu") is not batch
    assert len(batch.image_seeds) == len(batch.pack.images)


def test_image_seeds_are_unique(tmp_path: Path) -> None:
    rows = [interleaved_row(n, images=3) for n in range(4)]
    data = module(config(write_shards(tmp_path, rows)), dropout=NO_DROPOUT)
    seeds = [seed for epoch in range(2) for b in data.train_dataloader() for seed in b.image_seeds]
    assert len(set(seeds)) == len(seeds) == 2 * 4 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_files_that_are_reached_twice_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interleaved_shards(tmp_path / "shards" / "v2", 4)
    module(config(tmp_path / "shards"))
    assert "more than once" not in caplog.text
    (tmp_path / "shards" / "latest").symlink_to("v2")
    module(config(tmp_path / "shards"))
    assert "reaches 2 files more than once" in caplog.text


@pytest.mark.parametrize("share", [5, -0.1, float("nan")])
def test_share_of_damaged_rows_is_a_fraction(share: float, shards: Path) -> None:
    """5 would not mean five percent, but all rows."""
    with pytest.raises(ConfigError, match=r"data\.max_bad_fraction"):
        module(config(shards), max_bad_fraction=share)
