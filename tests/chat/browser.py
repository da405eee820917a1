"""Headless Chromium over its DevTools protocol, without a driver package.

Source: https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import tempfile
import time
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.blockedURI));
window.addEventListener("error", (e) => window.violations.push(e.message));
"""


def find_chromium() -> str:
    """The program; skips the test without it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


class Tab:
    """An open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count()
        self._session: str | None = None
        self.requested: list[str] = []
        """Addresses that the page has asked for."""

    async def open(self, url: str) -> None:
        """Opens a page, and waits until its scripts have run."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            await self.call(f"{domain}.enable")
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        await self.call("Page.navigate", url=url)
        await self.wait("document.readyState === 'complete' && typeof ask === 'function'")

    async def call(self, method: str, **params: Any) -> Any:
        """Sends a command and returns its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        while True:
            answer = json.loads(await self._socket.receive_str())
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def run(self, script: str) -> Any:
        """Runs a script and returns its value; promises are awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait(self, condition: str) -> None:
        """Waits until an expression is true, checked once a frame."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if await self.run(f"Boolean({condition})"):
                return
            await self.run("new Promise((done) => setTimeout(done, 16))")
        raise AssertionError(f"never: {condition}\n{await self.run('document.body.innerText')}")

    async def screenshot(self) -> bytes:
        """The visible part as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        return b64decode(answer["data"])


@contextlib.asynccontextmanager
async def opened_tab(url: str) -> AsyncIterator[Tab]:
    """Starts Chromium with a page; it ends with the block."""
    flags = [*FLAGS, *(["--no-sandbox"] if os.getuid() == 0 else [])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            find_chromium(),
            *flags,
            f"--user-data-dir={profile}",
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            address = await _address(process)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(address, max_msg_size=0) as socket,
            ):
                tab = Tab(socket)
                await tab.open(url)
                yield tab
                await socket.send_json({"id": -1, "method": "Browser.close"})
        finally:
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.terminate()
            await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if line.startswith("DevTools listening on "):
            return line.split()[-1]
    raise AssertionError("Chromium has ended")
