"""What commands show of the messages of this package and of Lightning."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_info as lightning_info

from mathcanvas_lightning.common import logs
from mathcanvas_lightning.common.logs import FILE_ONLY, is_quiet, log_file, set_up_logging

NAMES = (logs.PACKAGE, *logs.LIGHTNING, *logs.NOISY)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, handlers, level in before:
        logger.handlers, logger.level = handlers, level
        logger.manager._clear_cache()  # type: ignore[attr-defined]


def say() -> None:
    ours = logging.getLogger("mathcanvas_lightning.training")
    ours.debug("ours: detail")
    ours.info("ours: message")
    ours.info("ours: for the file", extra=FILE_ONLY)
    ours.warning("ours: warning")
    lightning_info("TPU available: False")
    logging.getLogger("lightning.pytorch.trainer").warning("lightning: warning")


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        (-1, ["ours: warning", "lightning: warning"]),
        (0, ["ours: message", "ours: warning", "lightning: warning"]),
        (
            1,
            [
                "ours: detail",
                "ours: message",
                "ours: warning",
                "TPU available: False",
                "lightning: warning",
            ],
        ),
    ],
)
def test_shown(verbosity: int, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a second command in the same process shows nothing twice
        set_up_logging(verbosity)
        capsys.readouterr()
        say()
        assert capsys.readouterr().err.splitlines() == shown
    assert is_quiet() == (verbosity == -1)


def test_other_ranks_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    set_up_logging()
    logging.getLogger("mathcanvas_lightning.training").info("message")
    assert capsys.readouterr().err == ""


def test_messages_that_this_package_sends_through_lightning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mathcanvas_lightning.training.checkpoint.resume import find_checkpoint

    set_up_logging()
    (tmp_path / "empty.ckpt").touch()
    with log_file(tmp_path / "run" / "log.txt"):
        find_checkpoint(tmp_path)
        say()
    say()
    assert capsys.readouterr().err.startswith(f"Skipped {tmp_path}/empty.ckpt")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line[20:].split(":")[1].split(",")[0].strip() for line in lines[1:]] == [
        "message",
        "for the file",
        "warning",
        "warning",
    ]


def test_noise_is_not_shown() -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        set_up_logging()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(one.message) for one in found] == ["something else"]


@pytest.mark.parametrize("verbosity", [-1, 0, 1])
def test_warnings_at_the_import_of_libraries_are_shown_only_if_verbose(verbosity: int) -> None:
    for before in (0, 1):  # whatever an earlier command in the same process has set
        set_up_logging(before)
        set_up_logging(verbosity)
        for name in ("torchao.some", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
            assert logging.getLogger(name).isEnabledFor(logging.WARNING) == (verbosity > 0)


@pytest.mark.parametrize(("name", "is_shown"), [("val/puzzles/ce", False), ("mine/loss", True)])
def test_only_values_of_all_ranks_are_logged_without_advice(
    name: str, is_shown: bool, recwarn: pytest.WarningsRecorder
) -> None:
    set_up_logging()
    warnings.warn(  # as Lightning's result.py does
        f"It is recommended to use `self.log({name!r}, ..., sync_dist=True)` when logging",
        stacklevel=1,
    )
    assert bool(recwarn.list) == is_shown
