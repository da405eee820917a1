"""The page's server ends with a signal, also while it answers."""

import signal
import threading
import urllib.request

import pytest
from aiohttp import web

from mathcanvas_lightning.chat.server import bind, serve
from mathcanvas_lightning.common.exits import SIGNALS, exit_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_breaks_no_step_of_the_server(number: int) -> None:
    """An exception in the middle of a step could make the end of the server hang."""
    threads, answers = [], []

    async def page(request: web.Request) -> web.Response:
        signal.raise_signal(number)
        return web.Response(text="the page")

    def ask(url: str) -> None:
        with urllib.request.urlopen(url, timeout=300) as answer:
            answers.append(answer.read())

    def ready(url: str) -> None:
        threads.append(threading.Thread(target=ask, args=(url,)))
        threads[0].start()

    app = web.Application()
    app.add_routes([web.get("/", page)])
    with pytest.raises(SystemExit) as end, exit_on_signals(number):
        serve(app, bind(0), ready)
    threads[0].join()
    assert end.value.code == SIGNALS + number
    assert answers == [b"the page"]
