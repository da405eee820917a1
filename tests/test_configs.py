"""Every shipped configuration fits the signatures, and runs end to end in miniature."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, LightningModule

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from tests.conftest import ROOT, TRAINER_WARNINGS, golden_folder, read_jsonl, refuse_to_load
from tests.data.make_rows import edit_shards, interleaved_shards, t2i_shards, vlm_file
from tests.generation.misbehaving import ChatServer, chat_server
from tests.parity.packs import need

FITS = sorted((ROOT / "configs" / "fit").glob("*.yaml"))
PREDICTS = sorted((ROOT / "configs").glob("predict_*.yaml"))
LOGGERS = sorted((ROOT / "configs" / "logger").glob("*.yaml"))
TRAINERS = sorted((ROOT / "configs" / "trainer").glob("*.yaml"))
MAKERS: dict[str, Any] = {
    "interleaved": interleaved_shards,
    "t2i": t2i_shards,
    "edit": edit_shards,
    "vlm": vlm_file,
}
SMALL = {
    "vae_transform": {"max_image_size": 64, "min_image_size": 32, "image_stride": 16},
    "vit_transform": {"max_image_size": 56, "min_image_size": 28, "image_stride": 14},
}
pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


def fits_on_trainers() -> list[Any]:
    """Sets that show each file once, which are quick, and again beside another one."""
    longest = max(len(FITS), len(TRAINERS), len(LOGGERS))

    def sets(shift: int) -> set[tuple[Path, Path, Path]]:
        return {
            (
                FITS[n % len(FITS)],
                TRAINERS[(n + shift) % len(TRAINERS)],
                LOGGERS[(n + shift) % len(LOGGERS)],
            )
            for n in range(longest)
        }

    once, again = sets(0), sets(len(TRAINERS) // 2)
    slow = (pytest.param(*one, marks=pytest.mark.slow) for one in sorted(again - once))
    return [*sorted(once), *slow]


@pytest.mark.parametrize(
    ("fit", "trainer", "logger"), fits_on_trainers(), ids=lambda path: path.stem
)
def test_fits_the_signatures(
    fit: Path, trainer: Path, logger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for path in (fit, trainer, logger) for word in ("--config", str(path))]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *words, "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    wanted = yaml.safe_load(logger.read_text())["trainer"]["logger"]
    assert printed["trainer"]["logger"]["class_path"] == wanted["class_path"]
    assert wanted["init_args"].items() <= printed["trainer"]["logger"]["init_args"].items()
    given, model = yaml.safe_load(fit.read_text()), printed["model"]["init_args"]
    rate = given["model"]["init_args"]["optimizer"]["lr"]
    assert model["optimizer"]["lr"] == (rate if model["lora"] is None else 1e-4)
    assert model.get("param_dtype", "float32") == "float32"
    assert model.get("frozen_dtype") in (None, "nf4", model.get("compute_dtype"))
    resumable = [
        saver["init_args"]
        for saver in printed["trainer"]["callbacks"]
        if saver["class_path"].endswith("ModelCheckpoint")
        and not saver["init_args"]["save_weights_only"]
    ]
    assert [saver["save_top_k"] in (1, 2) for saver in resumable] == [True]


def test_sampled_answers_fit_the_signatures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, saved = ROOT / "configs", tmp_path / "config.yaml"
    configs = [folder / "fit" / "demo_cpu.yaml", folder / "sample_answers.yaml"]
    texts = []
    for given in (configs, [saved]):  # the settings that a run saves start the same run
        words = [word for path in given for word in ("--config", str(path))]
        with pytest.raises(SystemExit) as ended:
            main(["fit", *words, "--print_config"])
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
        saved.write_text(texts[-1])
    assert texts[0] == texts[1]
    saver, sampler = yaml.safe_load(texts[0])["trainer"]["callbacks"]
    assert saver["class_path"].endswith("ModelCheckpoint")
    assert sampler["class_path"] == "mathcanvas_lightning.AnswerSampler"
    assert sampler["init_args"]["records"]["name"] == "puzzles"
    assert sampler["init_args"]["generation"]["drawing"]["timestep_shift"] == 2.0


@pytest.mark.parametrize("predict", PREDICTS, ids=lambda path: path.stem)
def test_predict_fits_the_signatures(predict: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--config", str(predict), "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(predict.read_text())
    assert set(given) <= set(printed)
    assert printed["data"]["init_args"]["inputs"][0]["path"]
    assert printed["trainer"]["devices"] == 1
    assert printed["trainer"]["logger"] is False


def test_predict_server_runs(tmp_path: Path) -> None:
    with chat_server(ChatServer()) as server:
        status = main(
            [
                "predict",
                "--config",
                str(ROOT / "configs" / "predict_server.yaml"),
                f"--model.init_args.backend.init_args.base_url={server.url}",
                "--data.init_args.inputs="
                f"[{{path: {ROOT}/tools/questions.jsonl, output: {tmp_path}/answers.jsonl}}]",
            ]
        )
    assert status == 0
    questions = read_jsonl(ROOT / "tools" / "questions.jsonl")
    answers = [one["model_answer"] for one in read_jsonl(tmp_path / "answers.jsonl")]
    assert answers == [f"re: {one['query_cot']}" for one in questions]
    assert all(body["messages"][0]["role"] == "system" for body in server.bodies)


def smaller(sets: list[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """The same data sets in miniature."""
    for number, found in enumerate(sets):
        path = MAKERS[found.get("format", "interleaved")](folder / f"set{number}", 12)
        yield {**found, **SMALL, "path": str(path)}


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS, ids=lambda path: path.stem)
def test_runs_in_miniature(fit: Path, tmp_path: Path) -> None:
    arguments = yaml.safe_load(fit.read_text())["data"]["init_args"]
    data = {
        "train": list(smaller(arguments["train"], tmp_path / "train")),
        "validation": list(smaller(arguments.get("validation", []), tmp_path / "validation")),
        "max_num_tokens": 1024,
        "max_num_tokens_per_sample": 1024,
        "packs_per_step": 2,
        "index_workers": 0,
        "workers": {"num_workers": 0},
        "quarantine_file": str(tmp_path / "quarantine.jsonl"),
    }
    overlay = {
        "data": {"init_args": data},
        "model": {
            "init_args": {
                "source": {"checkpoint": str(need(golden_folder() / "tiny_bagel"))},
                "schedule": {"warmup_steps": 1},
            }
        },
        "trainer": {
            "max_steps": 2,
            "val_check_interval": 2 if arguments.get("validation") else None,
            "default_root_dir": str(tmp_path / "run"),
            "logger": False,
            "callbacks": [],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        },
    }
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    cpu = ROOT / "configs" / "trainer" / "cpu.yaml"
    configs = [fit, cpu, tmp_path / "overlay.yaml"]
    assert main(["fit", *(word for path in configs for word in ("--config", str(path)))]) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.init_args.max_num_tokens_per_sample=9999999", "max_num_tokens_per_sample"),
        ("--data.init_args.packs_per_step=0", "packs_per_step"),
        ("--data.init_args.tokenizer=/nowhere", "tokenizer /nowhere"),
        ("--model.init_args.source.checkpoint=/nowhere", "/nowhere"),
        (
            "--data.init_args.geometry={vit_patch_px: 7, latent_patch_px: 16, "
            "max_vit_side: 8, max_latent_side: 6}",
            "geometry",
        ),
    ],
)
def test_wrong_settings_are_reported_before_anything_is_loaded(
    option: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_to_load(monkeypatch)
    folder = interleaved_shards(tmp_path / "set", 4)
    content = {
        "data": {
            "class_path": "mathcanvas_lightning.MathCanvasDataModule",
            "init_args": {
                "train": [{"path": str(folder), **SMALL}],
                "max_num_tokens": 1024,
                "max_num_tokens_per_sample": 1024,
                "index_workers": 0,
            },
        },
        "model": {
            "class_path": "mathcanvas_lightning.BagelModule",
            "init_args": {"source": {"checkpoint": str(need(golden_folder() / "tiny_bagel"))}},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "logger": False,
            "default_root_dir": str(tmp_path / "run"),
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(tmp_path / "run.yaml"), option]) != 0
    assert message in capsys.readouterr().err


class Lengths(LightningModule):
    """Predicts how many tokens a pack has."""

    def predict_step(self, batch: MicroBatch, batch_idx: int) -> int:
        return batch.pack.sequence_length


class Packs(MathCanvasDataModule):
    """The validation packs, for prediction."""

    def predict_dataloader(self) -> Any:
        self.setup("validate")
        return self.val_dataloader()


def test_predict_takes_any_module(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path / "set", 6)
    data = {
        "validation": [{"path": str(folder), **SMALL}],
        "max_num_tokens": 400,
        "max_num_tokens_per_sample": 400,
        "index_workers": 0,
        "workers": {"num_workers": 0},
    }
    content = {
        "model": {"class_path": "tests.test_configs.Lengths"},
        "data": {"class_path": "tests.test_configs.Packs", "init_args": data},
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "default_root_dir": str(tmp_path / "run"),
            "callbacks": [
                {
                    "class_path": "tests.test_configs.Writer",
                    "init_args": {"path": str(tmp_path / "lengths.txt")},
                }
            ],
        },
    }
    (tmp_path / "predict.yaml").write_text(yaml.safe_dump(content))
    assert main(["predict", "--config", str(tmp_path / "predict.yaml")]) == 0
    lengths = (tmp_path / "lengths.txt").read_text().split()
    assert all(0 < int(length) <= 400 for length in lengths)


class Writer(Callback):
    """Writes predictions down."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: int, *args: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{outputs}\n")
