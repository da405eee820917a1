"""`mathcanvas chat`: the terminal, the page's server, and what is said of mistakes."""

import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from mathcanvas_lightning.chat.conversation import ChatSettings
from mathcanvas_lightning.chat.server import bind
from mathcanvas_lightning.cli.chat import make_backend
from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.cli.terminal_chat import half_blocks, talk
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.events import Event, TextEvent
from tests.chat.talking import DRAWING, MARKUP, ScriptedBackend
from tests.conftest import png
from tests.generation.misbehaving import ChatServer, chat_server
from tests.warm import WarmPython

OPEN = re.compile(r"^Open (http://127\.0\.0\.1:\S+)", re.MULTILINE)


def typed(folder: Path, *lines: str, backend: Any = None, **options: Any) -> str:
    """What is printed when these lines are typed."""
    out = StringIO()
    console = Console(file=out, width=60, **options)
    waiting = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    talk(backend or ScriptedBackend(), ChatSettings(), console, folder / "drawn", read)
    return out.getvalue()


def test_a_conversation_in_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(png())
    backend = ScriptedBackend()
    picture = f"/picture '{tmp_path}/a b.png'"
    shown = typed(tmp_path, picture, "what?", "/again", "next", "/clear", "new", backend=backend)
    assert "1 pictures for the next question" in shown
    assert shown.count("re: what?\n") == 2
    assert MARKUP in shown
    paths = [tmp_path / "drawn" / f"{number:03d}.png" for number in range(1, 5)]
    assert [path.read_bytes() for path in paths] == [DRAWING] * 4
    assert all(f"drawing: {path}\n" in shown for path in paths)
    first, again, later, new = backend.asked
    assert first.messages == again.messages
    assert len(first.pictures) == 1
    assert again.sampling.seed == first.sampling.seed + 1
    assert [len(request.messages) for request in (later, new)] == [3, 1]
    assert "seed 1" in later.messages[1].text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/picture absent.png", "error: picture absent.png: found"),
        ("/picture 'open", "Close the quotes"),
        ("/again", "no question"),
        ("<image1> what?", None),
        ("fail", "error: too long by 3 tokens"),
        ("/helo", "/picture FILE"),
    ],
)
def test_mistakes_in_the_terminal_are_one_line(
    tmp_path: Path, line: str, message: str | None
) -> None:
    shown = typed(tmp_path, line, "/quit", "never asked")
    assert "never asked" not in shown
    assert "Traceback" not in shown
    assert message is None or message in shown


def test_an_interrupt_stops_the_answer_alone(tmp_path: Path) -> None:
    class Interrupted(ScriptedBackend):
        def stream(self, request: Any) -> Iterator[Event]:
            yield TextEvent(step=1, text="re")
            if request.messages[-1].text == "long":
                raise KeyboardInterrupt
            yield from super().stream(request)

    shown = typed(tmp_path, "long", "short", backend=Interrupted())
    assert "(stopped)" in shown
    assert "re: short" in shown


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    shown = typed(tmp_path, "\x1b[2Ja\u202eb\u00a0c")
    assert "re: [2Jab c" in shown
    assert "\x1b" not in shown


def test_a_drawing_is_shown_with_half_blocks() -> None:
    image = Image.new("RGB", (8, 8), "red")
    image.paste("blue", (0, 4, 8, 8))
    lines = half_blocks(image, 4).split()
    assert [line.plain for line in lines] == ["\N{UPPER HALF BLOCK}" * 4] * 2
    assert {str(span.style) for span in lines[0].spans} == {"rgb(255,0,0) on rgb(255,0,0)"}
    assert {str(span.style) for span in lines[1].spans} == {"rgb(0,0,255) on rgb(0,0,255)"}


def test_colours_are_used_only_on_terminals(tmp_path: Path) -> None:
    block = "\N{UPPER HALF BLOCK}"
    coloured = typed(tmp_path, "what?", force_terminal=True, color_system="truecolor")
    assert block in coloured
    assert block not in typed(tmp_path, "what?")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found no model; wanted one of --run RUN"),
        (["--run", "a", "--server", "http://127.0.0.1:1/v1"], "found --run and --server"),
        (["--run", "absent"], "absent: found no such folder"),
        (["--checkpoint", "absent"], "absent"),
        (["--checkpoint", "absent", "--model", "x"], "--model"),
        (["--run", "absent", "--port", "70000"], "--port: found 70000"),
        (["--run", "absent", "--temperature", "-1"], "sampling.temperature"),
        (["--run", "absent", "--system_prompt_file", "none.txt"], "none.txt"),
        (["--server", "127.0.0.1"], "a URL such as"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    port = [] if "--port" in words else ["--port", "0"]
    assert main(["chat", *words, *port]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_port_in_use_is_said_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bind(0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        port = taken.getsockname()[1]
        assert main(["chat", "--checkpoint", "absent", "--port", str(port)]) == 1
    assert "Address already in use" in (said := capsys.readouterr().err)
    assert "--port 0" in said
    with pytest.raises(ConfigError):
        bind(-1)


def test_a_wrong_option_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--rum", "demo/run"])
    assert ended.value.code == 2
    assert "Did you mean --run?" in capsys.readouterr().err


def test_a_model_folder_can_draw_faster(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    backend = make_backend(checkpoint=str(tmp_path), drawing_steps=9, mode="image", think=True)
    assert isinstance(backend, BagelBackend)
    assert backend.settings["drawing"]["num_timesteps"] == 10
    assert (backend.settings["mode"], backend.settings["think"]) == ("image", True)


def test_a_run_brings_its_checkpoint_and_image_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    sizes = {"max_image_size": 96, "min_image_size": 48, "image_stride": 16}
    settings = {
        "checkpoint": str(tmp_path),
        "vae_transform": sizes,
        "max_context_tokens": 99,
        "drawing": {"text_scale": 1.0, "image_scale": 1.0},
    }
    monkeypatch.setattr("mathcanvas_lightning.cli.chat.backend_settings", lambda run: settings)
    backend = make_backend(run=str(tmp_path))
    assert isinstance(backend, BagelBackend)
    made = backend.settings
    assert made["vae_transform"] == {**made["vae_transform"], **sizes}
    assert (made["max_context_tokens"], made["drawing"]["text_scale"]) == (99, 1.0)


@pytest.mark.parametrize(
    ("option", "sign", "other"),
    [("run", "llm_config.json", "--checkpoint"), ("checkpoint", "config.yaml", "--run")],
)
def test_the_right_option_for_a_folder_is_named(
    option: str, sign: str, other: str, tmp_path: Path
) -> None:
    (tmp_path / sign).write_text("{}")
    with pytest.raises(ConfigError, match=f"Use {other} "):
        make_backend(**{option: str(tmp_path)})


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_page_of_a_chat_server(number: signal.Signals, status: int, warm: WarmPython) -> None:
    with chat_server(ChatServer()) as chat:
        words = ["chat", "--server", chat.url, "--port", "0"]
        process = warm.start(["-m", "mathcanvas_lightning", *words])
        found = process.wait_until(lambda: OPEN.search(process.printed))
        with urllib.request.urlopen(found[1]) as page:
            assert "parrot" in page.read().decode()
        os.kill(process.pid, number)
        done = process.wait()
    assert done.returncode == status
    assert "Traceback" not in done.stderr
