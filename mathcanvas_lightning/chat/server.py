"""Serves the page, only on this machine."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import closing

from aiohttp import web

from mathcanvas_lightning.common.parallel import signals_postponed
from mathcanvas_lightning.errors import ConfigError

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """Takes a port of the loopback interface.

    Args:
        port: Number of the port; 0 takes a free one.

    Raises:
        ConfigError: If it is taken or not allowed.
    """
    reason = "not from 0 to 65535"
    if 0 <= port < 2**16:
        try:
            return socket.create_server((HOST, port))
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (")[0]
    raise ConfigError(
        "--port",
        found=f"{port} ({reason})",
        wanted="a free port",
        remedy="Choose another one, or --port 0 for any free one.",
    )


def serve(app: web.Application, listening: socket.socket, ready: Callable[[str], None]) -> None:
    """Serves until the process is interrupted.

    An exception of a signal would end a step of the event loop, and others would wait for it
    forever. So signals end the server first.

    Args:
        app: The application.
        listening: See `bind`; it is closed at the end.
        ready: Called with the address of the page.
    """
    ended = asyncio.Event()
    with closing(listening), asyncio.Runner() as runner:
        loop = runner.get_loop()  # it handles Ctrl-C in this way by itself

        def end() -> None:
            loop.call_soon_threadsafe(ended.set)

        with signals_postponed(signal.SIGTERM, signal.SIGHUP, notify=end):
            runner.run(_serve(app, listening, ready, ended))


async def _serve(
    app: web.Application,
    listening: socket.socket,
    ready: Callable[[str], None],
    ended: asyncio.Event,
) -> None:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        ready(f"http://{HOST}:{listening.getsockname()[1]}")
        await ended.wait()
    finally:
        await runner.cleanup()
