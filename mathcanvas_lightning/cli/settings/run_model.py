"""`predict --run`: the model, the image sizes, and the files of its answers."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mathcanvas_lightning.cli.settings.runs import is_given, take_option
from mathcanvas_lightning.common.locks import locked
from mathcanvas_lightning.common.paths import local_path, unquoted_name
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.training.checkpoint.export import export_checkpoint, export_name
from mathcanvas_lightning.training.checkpoint.record import RunRecord
from mathcanvas_lightning.training.checkpoint.verify import read_about
from mathcanvas_lightning.training.run.folder import RunFolder, find_run, image_transforms
from mathcanvas_lightning.training.run.newest import find_checkpoint_file

log = logging.getLogger(__name__)


@contextlib.contextmanager
def run_settings(words: Sequence[str]) -> Iterator[list[str]]:
    """Replaces `--run`, `--input` and `--output` of `predict` by settings in a temporary file.

    These settings override those of other YAML files, and options on the command line override
    them. Processes that Lightning starts for further devices read them anew.

    Args:
        words: The command and its options.

    Yields:
        The words that LightningCLI reads.

    Raises:
        InputError: If the run, its settings or its checkpoint are missing.
        ConfigError: If there are no questions.
    """
    run, rest = take_option(words, "--run")
    source, rest = take_option(rest, "--input")
    output, rest = take_option(rest, "--output")
    if run is None and source is None and output is None:
        yield list(words)
        return
    folder = None if run is None else find_run(run)
    if source is None and not is_given(rest, "--config"):
        raise ConfigError(
            "--input",
            found="no questions",
            wanted="a file of questions, or shards",
            remedy="Add --input questions.jsonl, or --config with data.init_args.inputs.",
        )
    settings = {} if folder is None else _model_settings(folder)
    if source is not None:
        settings |= _data_settings(folder, source, output)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "run.yaml")
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        yield _inserted(rest, ["--config", str(path)])


def _inserted(words: Sequence[str], new: Sequence[str]) -> list[str]:
    """Inserts words after the last `--config` of a command."""
    place = 1
    for number, word in enumerate(words):
        if word in ("--config", "-c"):
            place = number + 2
        elif word.startswith("--config="):
            place = number + 1
    return [*words[:place], *new, *words[place:]]


def backend_settings(run: RunFolder) -> dict[str, Any]:
    """Arguments of a `BagelBackend` for the newest checkpoint of a run, in YAML form.

    Args:
        run: The run; its checkpoint is exported if that was not done.

    Raises:
        InputError: If the run has no settings or no complete checkpoint.
    """
    settings = run.settings()
    folder = exported(run)
    backend: dict[str, Any] = {"checkpoint": str(folder)}
    if BagelConfig.from_directory(folder).trained_images is None:  # a run of an earlier version
        backend |= image_transforms(settings)
    data = (settings.get("data") or {}).get("init_args") or {}
    if data.get("max_num_tokens_per_sample"):
        backend["max_context_tokens"] = data["max_num_tokens_per_sample"]
    if not _is_guided(data):
        backend["drawing"] = {"text_scale": 1.0, "image_scale": 1.0}
    return backend


def _model_settings(run: RunFolder) -> dict[str, Any]:
    backend = {
        "class_path": "mathcanvas_lightning.BagelBackend",
        "init_args": backend_settings(run),
    }
    return {
        "model": {
            "class_path": "mathcanvas_lightning.GenerationModule",
            "init_args": {"backend": backend},
        },
    }


def _data_settings(run: RunFolder | None, source: str, output: str | None) -> dict[str, Any]:
    if output is None and run is not None:
        name = Path(unquoted_name(source)).stem
        output = str(run.path / "answers" / f"{name}.jsonl")
    return {
        "data": {
            "class_path": "mathcanvas_lightning.RecordDataModule",
            "init_args": {"inputs": [{"path": source, "output": output}]},
        },
    }


def _is_guided(data: Mapping[str, Any]) -> bool:
    """Whether a run drops conditions; a model trained without cannot be guided."""
    dropout = data.get("dropout")
    return dropout is None or any(dropout.values())


def exported(run: RunFolder) -> Path:
    """Exports the newest checkpoint of a run, once.

    Args:
        run: The run.

    Returns:
        Directory of the model: with merged adapters, and of the moving average if the run has one.

    Raises:
        InputError: If the run has no complete checkpoint.
    """
    checkpoint = find_checkpoint_file(run.path)
    about = read_about(local_path(checkpoint))
    record = RunRecord.from_checkpoint(about, str(checkpoint))
    average = record.ema_decay is not None
    target = run.exports / export_name(int(about["global_step"]), ema=average)
    run.exports.mkdir(exist_ok=True)
    with locked(run.exports / ".lock"):
        is_new = target.is_dir() and target.stat().st_mtime >= checkpoint.stat().st_mtime
        if not is_new:
            log.info("Exporting %s to %s", checkpoint, target)
            export_checkpoint(
                str(checkpoint),
                output=str(target),
                ema=average,
                merge_lora=record.lora is not None,
                overwrite=True,
            )
    return target
