"""Access control: only this machine, and only pages that this server has made, get answers."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of all answers: the browser loads nothing from elsewhere."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests that another web site may have sent, and says in JSON what failed."""
    if (refusal := refused(request.host, request.headers.get("Origin"))) is not None:
        return failed(refusal, status=403)
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        limit = request.client_max_size // 2**20
        return failed(f"the upload is too large: at most {limit} MiB together", status=413)
    except web.HTTPException as error:
        return failed(error.reason, status=error.status)


def refused(host: str, origin: str | None) -> str | None:
    """Why a request is refused; None if it is not.

    A web site can let its own name point to 127.0.0.1 (DNS rebinding); the header Host then has
    that name.

    Args:
        host: The header Host.
        origin: The header Origin, which browsers send with each request that changes something.
    """
    if _hostname(f"//{host}") not in LOOPBACK:
        return f"this page is for this machine only: open it as http://127.0.0.1, not as {host}"
    if origin is not None and urlsplit(origin).netloc != host:
        return f"a request from another page: {origin}"
    return None


def failed(message: str, *, status: int = 400) -> web.Response:
    """An answer that says what failed."""
    return web.json_response({"error": message}, status=status)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:  # noqa: ARG001
    """Adds `HEADERS` to an answer."""
    response.headers.update(HEADERS)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
