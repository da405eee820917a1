"""Sampled answers come from the weights in training, are scored, and change no training."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy

from mathcanvas_lightning import AnswerSampler, BagelModule, RecordInput, Sampling
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.evaluation.report.page import write_report
from mathcanvas_lightning.evaluation.sampler import answering
from mathcanvas_lightning.evaluation.sampler.answering import AnswerSettings
from mathcanvas_lightning.evaluation.sampler.results import Reference
from mathcanvas_lightning.evaluation.scoring import score_responses
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.model.parallelize import Parallelism
from mathcanvas_lightning.records.files import read_records
from mathcanvas_lightning.training.callbacks.ema import EMAConfig
from mathcanvas_lightning.training.callbacks.pictures import PictureLogger
from mathcanvas_lightning.training.strategy import ShardedStrategy
from tests.conftest import QUIET, TRAINER_WARNINGS, png, refuse_to_load
from tests.data.make_rows import config, interleaved_shards
from tests.training.callbacks.test_pictures import FakeTensorBoard, FakeWandb, set_up
from tests.training.runs import network, train, training_data, weights

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS)

SHORT = AnswerSettings(
    drawing=DrawingConfig(text_scale=1.0, num_timesteps=3),
    max_steps=2,
    max_images=1,
    max_context_tokens=400,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "shards", 16)


def sampler(source: Path, **options: Any) -> AnswerSampler:
    """A sampler of three short answers."""
    fields = {name: options.pop(name) for name in ("image_field", "name") if name in options}
    defaults: dict[str, Any] = {
        "num_records": 3,
        "sampling": Sampling(temperature=0.7, max_tokens=6),
        "generation": SHORT,
    }
    return AnswerSampler(RecordInput(path=str(source), **fields), **{**defaults, **options})


def fit(
    shards: Path, folder: Path, *callbacks: Any, model: BagelModule | None = None, **options: Any
) -> Any:
    """Trains two steps with a validation after each; returns the module."""
    model = model or network()
    data = training_data(config(shards), validation=(config(shards, name="val"),))
    defaults: dict[str, Any] = {"max_steps": 2, "val_check_interval": 1, "limit_val_batches": 1}
    train(model, data, folder, callbacks=list(callbacks), **{**defaults, **options})
    return model


def answers(folder: Path, step: int, name: str = "shards") -> list[Any]:
    """The answers of a sampling."""
    path = folder / "answers" / name / f"step_{step}.parquet"
    return [record["model_answer"] for record in read_records(path)]


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("run")
    logger = CSVLogger(folder, name="", version="")
    chosen = ModelCheckpoint(folder / "saved", monitor="answers/held/accuracy", mode="max")
    callbacks = [sampler(shards, name="held"), chosen]
    model = fit(shards, folder, *callbacks, logger=logger, enable_checkpointing=True)
    return folder, model


def test_files_are_those_of_predict_and_score(run: tuple[Path, Any], shards: Path) -> None:
    folder = run[0] / "answers" / "held"
    assert {p.name for p in folder.iterdir()} >= {"step_1.parquet", "step_1", "step_2.parquet"}
    records = list(read_records(folder / "step_2.parquet"))
    assert [one["id"] for one in records] == [
        "row0",
        "row2",
        "row4",
    ]  # the first of the first shard
    for record in records:
        answer = folder / "step_2" / record["id"]
        steps = json.loads((answer / "reasoning_result.json").read_text())["reasoning_steps"]
        texts = [step["content"] for step in steps if step["type"] == "text"]
        assert "\n\n".join(texts) == record["model_answer"]
        assert list((answer / "ori_images").iterdir())
    written = (folder / "step_2.html").read_text()
    page = write_report(str(folder / "step_2.parquet"))
    assert page.path.read_text() == written
    assert (page.num_records, page.num_faults) == (3, 0)


@pytest.mark.slow
def test_metrics_are_logged_and_can_be_monitored(run: tuple[Path, Any]) -> None:
    folder = run[0]
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["answers/held/seconds"]]
    assert len(rows) == 2
    for step, row in enumerate(rows, start=1):
        path = folder / "answers" / "held" / f"step_{step}.parquet"
        report = score_responses(
            str(path), output=str(folder / "scores.json"), num_workers=1, progress=False
        )
        assert float(row["answers/held/accuracy"]) == report.overall.accuracy
        shares = 1 - report.overall.num_unanswered / 3
        assert float(row["answers/held/answered"]) == pytest.approx(shares)
    assert list((folder / "saved").iterdir())


class RandomStates(Callback):
    """Keeps the random states after each validation."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.found.append((torch.get_rng_state(), np.random.get_state()[1].tolist()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ema", "lora"))]
)
def test_training_does_not_change(kind: str, shards: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "plain": {},
        "ema": {"ema": EMAConfig(decay=0.5)},
        "lora": {
            "lora": LoRASettings(parts=["und", "gen"], rank=2),
            "compute_dtype": "bfloat16",
        },
    }[kind]
    states = RandomStates(), RandomStates()
    with_answers = fit(shards, tmp_path / "a", states[0], sampler(shards), model=network(**options))
    without = fit(shards, tmp_path / "b", states[1], model=network(**options))
    assert with_answers.network.training
    assert with_answers.network.attention_path is None
    for name, tensor in weights(without).items():
        assert torch.equal(tensor, weights(with_answers)[name]), name
    for one, other in zip(states[0].found, states[1].found, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]
    records = list(read_records(tmp_path / "a" / "answers" / "shards" / "step_2.parquet"))
    assert not any("model_answer_error" in record for record in records)


class Again(Callback):
    """Answers the same requests after the training, with the weights of a moment."""

    def __init__(self, source: AnswerSampler, *, averaged: bool) -> None:
        self.source, self.averaged = source, averaged
        self.texts: list[str] = []

    def on_train_end(self, trainer: Any, module: Any) -> None:
        module.eval()
        if self.averaged:
            module.ema_weights.swap_in(module.network)
        found = self.source.answer(trainer, module)
        if self.averaged:
            module.ema_weights.swap_out(module.network)
        self.texts = [answer.response.outputs[0].text for answer in found]


@pytest.mark.slow
def test_answers_use_the_moving_average(shards: Path, tmp_path: Path) -> None:
    model = network(ema=EMAConfig(decay=0.999))
    source = sampler(shards, sampling=Sampling(temperature=1.0, max_tokens=24))
    averaged, trained = Again(source, averaged=True), Again(source, averaged=False)
    fit(shards, tmp_path, source, averaged, trained, model=model, max_steps=3)
    assert answers(tmp_path, 3) == averaged.texts != trained.texts


@pytest.mark.slow
def test_every_n_steps_also_after_a_resume(shards: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "num_sanity_val_steps": 1}
    fit(shards, tmp_path, sampler(shards, every_n_steps=3), saver, max_steps=4, **options)
    found = tmp_path / "answers" / "shards"
    assert {path.name for path in found.glob("*.parquet")} == {"step_3.parquet"}
    shutil.rmtree(found)
    [start] = (tmp_path / "saved").glob("*step=2.ckpt")
    model, data = network(), training_data(config(shards), validation=(config(shards, name="v"),))
    options = {"val_check_interval": 1, "limit_val_batches": 1, "enable_checkpointing": True}
    trainer = Trainer(
        max_steps=4,
        gradient_clip_val=1.0,
        default_root_dir=tmp_path,
        callbacks=[sampler(shards, every_n_steps=3), saver],
        **QUIET | options,
    )
    trainer.fit(model, data, ckpt_path=str(start), weights_only=True)
    assert {path.name for path in found.glob("*.parquet")} == {"step_3.parquet"}


def test_a_failing_record_fails_alone(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(32, 32))
    rows = [
        {"sample_index": 1, "query_cot": "What?", "image": "a.png", "answer": "A"},
        {"sample_index": 2, "query_cot": "What?", "image": "missing.png", "answer": "A"},
        {"sample_index": 3, "query_cot": "far too long " * 100, "answer": "A"},
    ]
    source = tmp_path / "held.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    fit(shards, tmp_path, sampler(source, name="held"))
    first, second, third = read_records(tmp_path / "answers" / "held" / "step_2.jsonl")
    assert isinstance(first["model_answer"], str)
    assert second["model_answer"] is third["model_answer"] is None
    assert "missing.png" in second["model_answer_error"]
    assert third["model_answer_error"].startswith("prompt_too_long")


def test_training_continues_if_the_generator_stops(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(BagelBackend, "collect", fail)
    model = fit(shards, tmp_path, sampler(shards))
    assert model.trainer.global_step == 2
    assert "no memory left" in caplog.text
    metrics = model.trainer.callback_metrics
    assert (metrics["answers/shards/accuracy"], metrics["answers/shards/answered"]) == (0, 0)
    assert model.network.attention_path is None


@pytest.mark.slow
def test_training_continues_if_files_cannot_be_written(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "answers").write_text("a file in the way")
    model = fit(shards, tmp_path, sampler(shards))
    assert model.trainer.global_step == 2
    assert "writing or scoring the answers at step 1 failed" in caplog.text
    assert "answers/shards/accuracy" not in model.trainer.callback_metrics


def test_without_references_nothing_is_scored(shards: Path, tmp_path: Path) -> None:
    source = sampler(shards, reference=Reference(answer_field=None))
    model = fit(shards, tmp_path, source)
    assert len(answers(tmp_path, 1)) == 3
    names = [n for n in model.trainer.callback_metrics if n.startswith("answers/")]
    assert names == ["answers/shards/seconds"] == list(source.metric_names)


def test_loggers_get_texts_and_drawings(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTensorBoard, "__init__", lambda self, root: set_up(self, root))
    texts: list[Any] = []
    monkeypatch.setattr(
        FakeTensorBoard, "add_text", lambda self, *found: texts.append(found), raising=False
    )
    monkeypatch.setattr(
        FakeWandb, "log_text", lambda self, tag, **found: texts.append((tag, found)), raising=False
    )
    wandb, board = FakeWandb(), FakeTensorBoard(str(tmp_path))
    callback = sampler(shards, generation=AnswerSettings(**{**vars(SHORT), "mode": "image"}))
    fit(shards, tmp_path, callback, max_steps=1, logger=[board, wandb])
    [(tag, text, step), (other, table)] = texts
    assert tag == other == "answers/shards"
    assert step == table["step"] == 1
    assert text.count("**row") == len(table["data"]) == 3
    assert [layout for _, _, _, layout in board.added] == ["HWC"]
    assert [entry[0] for entry in wandb.pictures] == ["answers/shards/drawings"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_records": 0}, ConfigError, "1 or more of each"),
        ({"reference": Reference(answer_field="gold")}, InputError, "name their field|Name their"),
        ({"reference": Reference(puzzles="nowhere")}, InputError, "nowhere/row0/data.json"),
        (
            {"reference": Reference(answer_field=None, puzzles="nowhere")},
            ConfigError,
            "with answer_field null",
        ),
    ],
)
def test_wrong_settings_are_errors_before_the_network_is_built(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_to_load(monkeypatch)
    with pytest.raises(error, match=message):
        fit(shards, tmp_path, sampler(shards, **options))


def test_two_samplers_need_two_names(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(shards, tmp_path, sampler(shards), sampler(shards, name="other"), max_steps=1)
    assert {p.name for p in (tmp_path / "answers").iterdir()} == {"shards", "other"}
    refuse_to_load(monkeypatch)
    with pytest.raises(ConfigError, match=r"records\.name"):
        fit(shards, tmp_path, sampler(shards), sampler(shards))


def test_records_without_any_request(shards: Path, tmp_path: Path) -> None:
    source = tmp_path / "held.jsonl"
    rows = [{"sample_index": n, "query_cot": "?", "image": "no.png", "answer": 1} for n in (1, 2)]
    source.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"each of the first 2 records .*no\.png"):
        fit(shards, tmp_path, sampler(source))
    source.write_text("\n".join(json.dumps({**row, "sample_index": 1}) for row in rows))
    with pytest.raises(InputError, match="several records held:1"):
        fit(shards, tmp_path, sampler(source))


@pytest.mark.parametrize(
    ("strategy", "found"),
    [(FSDPStrategy, "FSDPStrategy"), (ShardedStrategy, "with parallelism.cpu_offload")],
)
def test_strategies_without_the_whole_network_are_refused(
    strategy: type[Any], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy, "root_device", torch.device("cuda"))
    trainer: Any = SimpleNamespace(strategy=strategy())
    with pytest.raises(ConfigError, match=f"{found}, with an AnswerSampler"):
        answering.require_strategy(trainer, network(parallelism=Parallelism(cpu_offload=True)))


def test_pictures_of_both_callbacks(shards: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path, PictureLogger(), sampler(shards), max_steps=1)
    assert (tmp_path / "pictures" / "step_1.png").is_file()
    assert (tmp_path / "answers" / "shards" / "step_1.parquet").is_file()
