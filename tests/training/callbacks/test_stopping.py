"""Signals in a run: handlers are restored, and no Ctrl-C is lost."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from mathcanvas_lightning.training.callbacks.stopping import StopOnSignal
from tests.conftest import QUIET

pytestmark = pytest.mark.filterwarnings("ignore")


class Swallow(Callback):
    """Interrupts this process when a hook is called, and swallows the exception."""

    def __init__(self, hook: str) -> None:
        self.calls = 0
        setattr(self, hook, self._interrupt)

    def _interrupt(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def fit(folder: Path, max_steps: int, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        max_steps=max_steps,
        val_check_interval=2,
        default_root_dir=folder,
        callbacks=[StopOnSignal(), *callbacks],
        **QUIET,
    )
    trainer.fit(BoringModel())
    return trainer


def test_handlers_are_restored(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    fit(tmp_path, 1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_validation_batch_start", "on_before_optimizer_step"]
)
def test_a_swallowed_interrupt_ends_the_batch(hook: str, tmp_path: Path) -> None:
    swallow = Swallow(hook)
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, 100, swallow)
    assert isinstance(end.value.__context__, KeyboardInterrupt)
    assert swallow.calls == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a job in the background of a shell
    swallow = Swallow("on_train_batch_start")
    assert fit(tmp_path, 3, swallow).global_step == swallow.calls == 3
