"""Ctrl-C at the start and at the end of a command: a status, and no traceback."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mathcanvas_lightning.cli.main import guarded
from tests.conftest import ROOT

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
COMMAND = """
import os, signal, sys, threading, types
from mathcanvas_lightning.cli.entry import run

def work():
    {work}

sys.modules["mathcanvas_lightning.cli.main"] = types.SimpleNamespace(main=work, run_command=None)
run()
"""
"""A process whose command does some work and returns a status."""


def run_python(*words: str, path: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    "words", [("-m", "mathcanvas_lightning", "--help"), ("tools/score_responses.py", "--help")]
)
def test_ctrl_c_during_imports(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "docstring_parser.py").write_text(INTERRUPT)  # which the command line imports
    done = run_python(*words, path=tmp_path)
    assert done.returncode in (-signal.SIGINT, 130)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    ("work", "status"),
    [
        ("return 3", 3),
        ("raise KeyboardInterrupt", 130),  # a second one, while the first one is reported
        # The exit must not wait for threads that wait for servers.
        ("threading.Thread(target=threading.Event().wait).start(); return 143", 143),
    ],
)
def test_a_command_ends_with_its_status(work: str, status: int) -> None:
    done = run_python("-c", COMMAND.format(work=work))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_ctrl_c_at_exit() -> None:
    work = "import atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT); return 0"
    done = run_python("-c", COMMAND.format(work=work))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = signal.Signals[name]
    before, left = signal.getsignal(number), []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            left.append(True)

    assert guarded(work) == 128 + number
    assert left == [True]
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.count("interrupted; finished work is kept") == 1


def test_a_second_ctrl_c_comes_after_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = Console.print

    def interrupt_and_show(self: Console, *args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        show(self, *args, **options)

    monkeypatch.setattr(Console, "print", interrupt_and_show)
    with pytest.raises(KeyboardInterrupt):
        guarded(lambda: signal.raise_signal(signal.SIGINT))
    assert capsys.readouterr().err.count("interrupted; finished work is kept") == 1


def test_output_may_be_cut() -> None:
    code = "import sys\nfrom mathcanvas_lightning.cli.main import guarded\n"
    code += "sys.exit(guarded(lambda: [print('text', flush=True) for _ in range(10**6)]))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.stdout, done.stderr) == ("text\n", "")


needs_full_device = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no device that is always full"
)


@pytest.mark.slow
@needs_full_device
@pytest.mark.parametrize(
    "words", ["", "--version", "fit --help", "score --help", "fit --full_help"]
)
def test_a_full_disk_is_one_line(words: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m mathcanvas_lightning {words} > /dev/full"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "error: " in done.stderr
    assert "No space left on device" in done.stderr


@needs_full_device
@pytest.mark.parametrize("end", ["return 0", "sys.exit(0)"])
def test_output_that_is_lost_at_the_exit(end: str) -> None:
    full = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1); sys.stdout = open(1, 'w')"
    done = run_python("-c", COMMAND.format(work=f"{full}; print('text'); {end}"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: standard output: No space left on device\n"
