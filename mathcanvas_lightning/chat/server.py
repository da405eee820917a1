"""Serves the page, only on this machine."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing

from aiohttp import web

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

    Args:
        app: The application.
        listening: See `bind`; it is closed at the end.
        ready: Called with the address of the page.
    """
    with closing(listening):
        asyncio.run(_serve(app, listening, ready))


async def _serve(
    app: web.Application, listening: socket.socket, ready: Callable[[str], None]
) -> None:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        ready(f"http://{HOST}:{listening.getsockname()[1]}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
