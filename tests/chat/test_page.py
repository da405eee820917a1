"""The page in a real browser: what a user does, and what is shown."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from mathcanvas_lightning.chat.app import make_app
from mathcanvas_lightning.chat.conversation import ChatSettings
from tests.chat.browser import Tab, opened_tab
from tests.chat.talking import MARKUP, ScriptedBackend
from tests.conftest import png

DROP = """(() => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(%s);
  data.items.add(new File([bytes], "a.png", { type: "image/png" }));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
})()"""
ENTER = """(() => {
  const box = document.getElementById("text");
  box.value = %s;
  const key = { key: "Enter", bubbles: true, cancelable: true };
  box.dispatchEvent(new KeyboardEvent("keydown", key));
})()"""
IDLE = "!document.getElementById('ask').disabled"


def run(work: Callable[[Tab, ScriptedBackend], Awaitable[None]]) -> None:
    async def whole() -> None:
        backend = ScriptedBackend()
        async with asyncio.timeout(400), TestServer(make_app(backend, ChatSettings())) as server:
            url = str(server.make_url("/"))
            async with opened_tab(url) as tab:
                await work(tab, backend)
                assert await tab.run("window.violations") == []
                local = (url, "data:", f"blob:{url}", "about:")
                assert [one for one in tab.requested if not one.startswith(local)] == []

    asyncio.run(whole())


async def click(tab: Tab, name: str) -> None:
    await tab.run(f"document.getElementById('{name}').click()")


@pytest.mark.slow
def test_a_conversation_in_the_browser(tmp_path: Path) -> None:
    async def work(tab: Tab, backend: ScriptedBackend) -> None:
        await tab.run(DROP % list(png(40, 24)))
        await tab.wait("document.querySelector('#pictures img')?.naturalWidth === 40")
        await tab.run(ENTER % json.dumps(f"what? {MARKUP}"))
        await tab.wait(f"document.querySelector('article.answer img')?.complete && {IDLE}")
        assert await tab.run("document.querySelector('article.answer img').naturalWidth") == 16
        shown = await tab.run("document.querySelector('article.answer').innerText")
        assert "re: what?" in shown
        assert MARKUP in shown  # as text
        assert "stop · 7 tokens" in shown
        assert backend.asked[0].pictures[0].data == png(40, 24)
        assert await tab.run("document.querySelectorAll('article img').length") == 2
        assert await tab.run("document.querySelectorAll('#pictures img').length") == 0

        await click(tab, "again")
        await tab.wait(f"document.querySelectorAll('article.answer').length === 2 && {IDLE}")
        assert backend.asked[1].messages == backend.asked[0].messages
        assert backend.asked[1].sampling.seed == backend.asked[0].sampling.seed + 1
        await _screenshots(tab)

        backend.hold = True
        await tab.run(ENTER % '"long"')
        await tab.wait("document.querySelectorAll('article.answer').length === 3")
        await click(tab, "stop")
        await tab.wait(IDLE)
        assert "stopped" in await tab.run("document.querySelector('main').innerText")
        backend.hold = False
        await tab.run(ENTER % '"fail"')
        await tab.wait(f"document.querySelector('.error') && {IDLE}")
        assert await tab.run("document.querySelector('.error').innerText") == "too long by 3 tokens"
        await click(tab, "clear")
        await tab.wait("!document.querySelector('article')")

    run(work)


async def _screenshots(tab: Tab) -> None:
    """Checks that nothing is wider than a phone; keeps screenshots if a folder is named."""
    folder = os.environ.get("MATHCANVAS_SCREENSHOTS")
    for name, width, scheme in (
        ("light", 1000, "light"),
        ("dark", 1000, "dark"),
        ("phone", 390, "light"),
    ):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        await tab.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await tab.call("Emulation.setEmulatedMedia", features=[feature])
        assert await tab.run("document.documentElement.scrollWidth") <= width
        if folder is not None:
            Path(folder, f"chat_{name}.png").write_bytes(await tab.screenshot())
