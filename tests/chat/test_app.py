"""The page's server: answers as events, and who may ask."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer

from mathcanvas_lightning.chat import app as chat_app
from mathcanvas_lightning.chat.app import SESSION_HEADER, make_app
from mathcanvas_lightning.chat.conversation import ChatSettings
from mathcanvas_lightning.chat.guard import refused
from mathcanvas_lightning.chat.session import MAX_SESSIONS, Sessions
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.requests import Sampling
from tests.chat.talking import MARKUP, ScriptedBackend
from tests.conftest import png

Client = TestClient[web.Request, web.Application]


@asynccontextmanager
async def open_page(backend: ScriptedBackend) -> AsyncIterator[tuple[Client, dict[str, str]]]:
    """A client, and the headers of a new page."""
    settings = ChatSettings(sampling=Sampling(temperature=0.5, seed=3), follow_up=False)
    async with TestClient(TestServer(make_app(backend, settings))) as client:
        text = await (await client.get("/")).text()
        (token,) = re.findall(r'name="session" content="([^"]+)"', text)
        yield client, {SESSION_HEADER: token}


def run(work: Callable[[Client, dict[str, str]], Awaitable[None]], **options: Any) -> None:
    """Runs a test with an open page."""

    async def whole() -> None:
        async with asyncio.timeout(300), open_page(ScriptedBackend(**options)) as (client, headers):
            await work(client, headers)

    asyncio.run(whole())


def form(text: str = "", *pictures: bytes, **fields: str) -> FormData:
    made = FormData(default_to_multipart=True)
    made.add_fields(("text", text), *fields.items())
    for number, data in enumerate(pictures):
        made.add_field("picture", data, filename=f"{number}.png", content_type="image/png")
    return made


async def ask(client: Client, headers: dict[str, str], data: FormData) -> list[dict[str, Any]]:
    async with client.post("/ask", data=data, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        blocks = (await response.text()).split("\n\n")
    return [json.loads(block[6:]) for block in blocks if block.startswith("data: ")]


def backend_of(client: Client) -> ScriptedBackend:
    (handler,) = [
        route.handler.__self__
        for route in client.app.router.routes()
        if route.resource is not None and route.resource.canonical == "/ask"
    ]
    backend: ScriptedBackend = handler.backend
    return backend


def test_texts_and_drawings_arrive_in_order() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        events = await ask(client, headers, form("what?", png(), seed="5", temperature="0.25"))
        assert [event["kind"] for event in events] == [
            *("text", "text", "drawing", "drawing", "text", "end")
        ]
        assert events[1]["text"] == "re: what?"
        assert events[2] == {"kind": "drawing", "step": 1, "share": 0.5, "url": None}
        assert events[3]["url"].startswith("data:image/png;base64,")
        assert MARKUP in events[4]["text"]
        assert (events[5]["reason"], events[5]["tokens"]) == ("stop", 7)
        (request,) = backend_of(client).asked
        assert request.pictures[0].data == png()
        assert (request.sampling.seed, request.sampling.temperature) == (5, 0.25)

    run(work)


def test_another_seed_replaces_the_last_answer() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        await ask(client, headers, form("one", png(), seed="1"))
        await ask(client, headers, form(seed="2", again="on"))
        await ask(client, headers, form("two", follow_up="on"))
        await client.post("/clear", headers=headers)
        await ask(client, headers, form("three", follow_up="on"))
        first, again, later, cleared = backend_of(client).asked
        assert again.messages == first.messages
        assert (first.sampling.seed, again.sampling.seed) == (1, 2)
        assert len(later.messages) == 3  # question and answer of "one", then "two"
        assert "seed 2" in later.messages[1].text
        assert len(cleared.messages) == 1

    run(work)


def test_an_answer_can_be_stopped_and_the_next_one_works() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        backend = backend_of(client)
        async with client.post("/ask", data=form("one"), headers=headers) as response:
            assert await response.content.readuntil(b"\n\n")
            second = await client.post("/ask", data=form("two"), headers=headers)
            assert second.status == 400
            assert "one at a time" in (await second.json())["error"]
            await client.post("/stop", headers=headers)
            assert b'"end"' not in await response.read()
        assert await asyncio.to_thread(backend.closed.wait, 200)
        backend.hold = False
        events = await ask(client, headers, form("two"))
        assert events[-1]["kind"] == "end"

    run(work, hold=True)


def test_a_page_that_is_closed_frees_the_model() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        backend = backend_of(client)
        response = await client.post("/ask", data=form("one"), headers=headers)
        assert await response.content.readuntil(b"\n\n")
        response.close()
        assert await asyncio.to_thread(backend.closed.wait, 200)

    run(work, hold=True)


def test_two_pages_wait_for_each_other() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        page = await (await client.get("/")).text()
        (token,) = re.findall(r'name="session" content="([^"]+)"', page)
        answers = await asyncio.gather(
            ask(client, headers, form("one")), ask(client, {SESSION_HEADER: token}, form("two"))
        )
        assert [events[1]["text"] for events in answers] == ["re: one", "re: two"]

    run(work)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (form("?", b"no picture"), "picture 0.png"),
        (form(""), "found nothing"),
        (form("?", seed="-1"), "a whole number from 0"),
        (form("?", seed="x"), "a whole number from 0"),
        (form("?", temperature="nan"), "sampling.temperature"),
        (form(again="on"), "no question"),
    ],
)
def test_wrong_questions_are_refused_in_one_line(data: FormData, message: str) -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        response = await client.post("/ask", data=data, headers=headers)
        assert response.status == 400
        error = (await response.json())["error"]
        assert message in error
        assert "\n" not in error
        assert backend_of(client).asked == []

    run(work)


def test_failures_of_the_model_are_shown() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        assert (await ask(client, headers, form("fail")))[-1] == {
            "kind": "error",
            "message": "too long by 3 tokens",
        }
        broken = BackendError("m", found="NaN", wanted="numbers", remedy="Use float32.")
        backend_of(client).error = broken
        events = await ask(client, headers, form("what?"))
        assert events[-1] == {"kind": "error", "message": str(broken)}
        backend_of(client).error = None
        assert (await ask(client, headers, form("what?")))[-1]["kind"] == "end"

    run(work)


def test_uploads_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_app, "MAX_UPLOAD_BYTES", 2**20)

    async def work(client: Client, headers: dict[str, str]) -> None:
        data = form("?", b"\0" * 2**20)
        response = await client.post("/ask", data=data, headers=headers)
        assert response.status == 413
        assert "at most 1 MiB" in (await response.json())["error"]

    run(work)


def test_only_pages_of_this_server_may_ask() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        elsewhere = [
            ({"Host": "evil.example"}, 403),
            ({"Host": "127.0.0.1.evil.example:80"}, 403),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({SESSION_HEADER: "guessed"}, 409),
        ]
        for changed, status in elsewhere:
            for path in ("/ask", "/stop", "/clear"):
                given = {**headers, **changed}
                response = await client.post(path, data=form("?"), headers=given)
                assert response.status == status, (path, changed)
        assert (await client.post("/stop")).status == 409
        assert (await client.get("/", headers={"Host": "evil.example"})).status == 403
        assert (await client.get("/app.py")).status == 404
        assert (await client.get("/..%2fapp.py")).status == 404
        assert backend_of(client).asked == []

    run(work)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "localhost:80", "[::1]:9"])
def test_loopback_names_are_allowed(host: str) -> None:
    assert refused(host, None) is None
    assert refused(host, f"http://{host}") is None
    assert refused(host, "http://localhost:9999") is not None


@pytest.mark.parametrize("host", ["", "[", "a b", "127.0.0.2", "localhost.", "user@evil.example"])
def test_other_names_are_refused(host: str) -> None:
    assert refused(host, None) is not None


def test_old_pages_are_forgotten() -> None:
    sessions = Sessions()
    first = sessions.open()
    stop = sessions.find(first)
    assert stop is not None
    event = stop.begin()
    for _ in range(MAX_SESSIONS):
        sessions.open()
    assert sessions.find(first) is None
    assert event.is_set()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self.ids: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.inline += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
        self.ids |= {given["id"] or ""} if "id" in given else set()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_from_elsewhere() -> None:
    async def work(client: Client, headers: dict[str, str]) -> None:
        response = await client.get("/")
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "unsafe" not in policy
        page = _Page()
        page.feed(await response.text())
        assert page.inline == []
        assert "scripted <model>" in page.text  # escaped in the source
        assert set(page.links) == {"data:,", "chat.css", "chat.js"}
        script = await (await client.get("/chat.js")).text()
        style = await (await client.get("/chat.css")).text()
        assert not re.search(r"https?://|url\(|@import|innerHTML|insertAdjacent", script + style)
        assert set(re.findall(r'byId\("(\w+)"\)', script)) <= page.ids

    run(work)
