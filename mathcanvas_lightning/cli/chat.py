"""`mathcanvas chat`: a conversation with a model, on a local page or in the terminal."""

import socket
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from aiohttp import web
from rich.console import Console

from mathcanvas_lightning.chat.app import make_app
from mathcanvas_lightning.chat.conversation import ChatSettings
from mathcanvas_lightning.chat.server import bind, serve
from mathcanvas_lightning.cli.settings.run_model import backend_settings
from mathcanvas_lightning.cli.terminal_chat import talk
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.problem import Mode
from mathcanvas_lightning.generation.events import StreamingBackend
from mathcanvas_lightning.generation.prompts.chat import read_system_prompt
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.training.run.folder import find_run


def chat(
    *,
    run: str | None = None,
    checkpoint: str | None = None,
    server: str | None = None,
    model: str | None = None,
    terminal: bool = False,
    port: int = 8770,
    drawings: str = "chat_drawings",
    mode: Mode = "interleaved",
    think: bool = False,
    system_prompt_file: str | None = None,
    drawing_steps: int | None = None,
    temperature: float = 0.3,
    top_p: float = 1.0,
    max_tokens: int = 1024,
    seed: int = 0,
) -> None:
    """Talks with a model: a page on this machine, or the terminal.

    The page is served on 127.0.0.1 until Ctrl-C, loads nothing from elsewhere, and shows texts and
    drawings while they are made. From another machine: `ssh -L 8770:127.0.0.1:8770 HOST`.

    Args:
        run: A run of fit: its newest checkpoint and image sizes.
        checkpoint: A folder in the layout of BAGEL-7B-MoT, such as the export of a run.
        server: URL of a running chat server (.../v1); it answers with texts only.
        model: Name of the model on the server; default: its only model.
        terminal: Talk in the terminal; /help lists its commands.
        port: Port of the page; 0 takes a free one.
        drawings: Folder for the drawings of a conversation in the terminal.
        mode: "interleaved" (texts and drawings), "understanding" (text) or "image" (a drawing).
        think: Ask the model to think first, if there is no system prompt.
        system_prompt_file: Text file with the system prompt.
        drawing_steps: Number of steps of a drawing; default: 49, the published number.
        temperature: Sampling temperature; 0 always takes the most likely token.
        top_p: Nucleus sampling: sample from the most likely tokens with this total probability.
        max_tokens: Maximum length of an answer, in tokens.
        seed: Seed of the first answer.
    """
    settings = ChatSettings(
        sampling=Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed),
        system_prompt=system_prompt_file and read_system_prompt(system_prompt_file, None),
        follow_up=server is not None,  # BAGEL is trained on single questions
    )
    console = Console()
    with ExitStack() as resources:
        # The port first: a model may take minutes to load.
        listening = None if terminal else resources.enter_context(bind(port))
        options: dict[str, Any] = {"mode": mode, "think": think, "drawing_steps": drawing_steps}
        backend = make_backend(run, checkpoint, server, model, **options)
        resources.callback(backend.close)
        with console.status("loading the model"):
            backend.start(device="cuda" if torch.cuda.is_available() else "cpu")
        if listening is None:
            talk(backend, settings, console, local_path(drawings))
        else:
            _show_page(make_app(backend, settings), listening, console)


def make_backend(
    run: str | None = None,
    checkpoint: str | None = None,
    server: str | None = None,
    model: str | None = None,
    *,
    drawing_steps: int | None = None,
    **options: Any,
) -> StreamingBackend:
    """Makes the backend of a run, a model folder or a server.

    Args:
        run: A run of fit.
        checkpoint: A folder in the layout of BAGEL-7B-MoT.
        server: URL of a chat server.
        model: Name of the model on the server.
        drawing_steps: Number of steps of a drawing.
        options: Further arguments of `BagelBackend`.

    Raises:
        ConfigError: If not exactly one model is given.
        InputError: If the run has no complete checkpoint.
    """
    models = {"--run": run, "--checkpoint": checkpoint, "--server": server}
    given = [name for name, value in models.items() if value]
    if len(given) != 1 or (model and not server):
        raise ConfigError(
            "chat",
            found=" and ".join([*given, *(["--model"] if model else [])]) or "no model",
            wanted="one of --run RUN, --checkpoint FOLDER, --server URL (with --model NAME)",
            remedy="For example: mathcanvas chat --run demo/run",
        )
    if server:
        return ServerBackend(server, model_name=model, max_retries=1)
    settings: dict[str, Any] = {"checkpoint": checkpoint}
    _check_kind("--checkpoint", checkpoint, other="--run", sign="config.yaml")
    _check_kind("--run", run, other="--checkpoint", sign="llm_config.json")
    if run:
        folder = find_run(run)
        settings = {**backend_settings(folder), "model_name": str(folder.path)}
    drawing = DrawingConfig(**settings.pop("drawing", {}))
    if drawing_steps is not None:
        drawing = replace(drawing, num_timesteps=drawing_steps + 1)
    for name in ("vae_transform", "vit_transform"):
        if name in settings:
            settings[name] = ImageTransform(**settings[name])
    return BagelBackend(drawing=drawing, max_batch_size=1, **settings, **options)


def _check_kind(option: str, folder: str | None, *, other: str, sign: str) -> None:
    """Raises an error if a folder has the file of the other kind of folder."""
    if folder is not None and (local_path(folder) / sign).is_file():
        raise ConfigError(
            option,
            found=f"{folder} with the file {sign}",
            wanted="a folder for this option",
            remedy=f"Use {other} {folder}.",
        )


def _show_page(app: web.Application, listening: socket.socket, console: Console) -> None:
    def invite(url: str) -> None:
        console.print(f"Open {url} in a browser; Ctrl-C ends.", highlight=False, soft_wrap=True)

    try:
        serve(app, listening, invite)
    except KeyboardInterrupt:
        console.print("The page is closed.")
