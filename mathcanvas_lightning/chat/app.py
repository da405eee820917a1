"""The web application: a page, its files, and the answers as server-sent events."""

import asyncio
import contextlib
import json
import time
from base64 import b64encode
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from aiohttp import web
from aiohttp.web_request import FileField
from jinja2 import Environment, StrictUndefined

from mathcanvas_lightning.chat.conversation import ChatSettings, Question, checked_pictures
from mathcanvas_lightning.chat.guard import add_headers, failed, guard
from mathcanvas_lightning.chat.session import Session, Sessions
from mathcanvas_lightning.chat.worker import Worker
from mathcanvas_lightning.errors import InputError, MathCanvasError
from mathcanvas_lightning.generation.events import (
    DrawingEvent,
    EndEvent,
    Event,
    StreamingBackend,
    TextEvent,
)
from mathcanvas_lightning.generation.requests import Sampling

MAX_UPLOAD_BYTES = 64 * 2**20
"""Maximum size of a question with its pictures."""
SESSION_HEADER = "X-Session"
MAX_SEED = 2**31 - 1
_FILES = {"chat.js": "text/javascript", "chat.css": "text/css"}


@dataclass(slots=True, kw_only=True)
class Chat:
    """What the handlers of the application share."""

    backend: StreamingBackend
    settings: ChatSettings
    worker: Worker
    sessions: Sessions = field(default_factory=Sessions)

    async def show_page(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """The page, with a new conversation."""
        sampling = self.settings.sampling
        page = _template().render(
            model=self.backend.model_name,
            session=self.sessions.open(),
            seed=sampling.seed,
            temperature=sampling.temperature,
            follow_up=self.settings.follow_up,
            max_seed=MAX_SEED,
            max_upload_bytes=MAX_UPLOAD_BYTES,
        )
        return web.Response(text=page, content_type="text/html")

    async def show_file(self, request: web.Request) -> web.Response:
        """A file of the page."""
        name = request.match_info["name"]
        if name not in _FILES:
            raise web.HTTPNotFound
        return web.Response(text=_read(name), content_type=_FILES[name])

    async def ask(self, request: web.Request) -> web.StreamResponse:
        """Answers a question, or the last one again with another seed."""
        session = self._session(request)
        form = await request.post()
        try:
            question = _question(dict(form), form.getall("picture", []), session, self.settings)
            is_again = "again" in form
            before = session.conversation
            before = before.without_last() if is_again and _answered(session) else before
            asked = before.request(question, self.settings.system_prompt)
            stop = session.begin()
        except MathCanvasError as error:
            return failed(str(error))
        session.last, session.conversation = question, before
        events = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        began = time.monotonic()
        try:
            await events.prepare(request)
            async with contextlib.aclosing(self.worker.answer(asked, stop)) as answer:
                async for event in answer:
                    if isinstance(event, EndEvent) and session.last is question:
                        session.conversation = before.with_answer(question, event.response)
                    await events.write(_encoded(as_json(event, time.monotonic() - began)))
        except ConnectionResetError:
            return events  # the page was closed
        except Exception as error:
            message = str(error) if isinstance(error, MathCanvasError) else repr(error)
            await events.write(_encoded({"kind": "error", "message": message}))
        finally:
            stop.set()
        return events

    async def stop(self, request: web.Request) -> web.Response:
        """Stops the answer in progress."""
        self._session(request).halt()
        return web.json_response({})

    async def clear(self, request: web.Request) -> web.Response:
        """Forgets the conversation."""
        self._session(request).clear()
        return web.json_response({})

    def _session(self, request: web.Request) -> Session:
        session = self.sessions.find(request.headers.get(SESSION_HEADER, ""))
        if session is None:
            raise web.HTTPConflict(reason="the server has forgotten this page; reload it")
        return session

    async def _close(self, app: web.Application) -> None:  # noqa: ARG002
        self.sessions.halt()
        await asyncio.to_thread(self.worker.close)


def make_app(backend: StreamingBackend, settings: ChatSettings) -> web.Application:
    """Makes the application.

    Args:
        backend: A started backend.
        settings: How questions are asked.
    """
    chat = Chat(backend=backend, settings=settings, worker=Worker(backend))
    app = web.Application(middlewares=[guard], client_max_size=MAX_UPLOAD_BYTES)
    app.add_routes(
        [
            web.get("/", chat.show_page),
            web.get("/{name}", chat.show_file),
            web.post("/ask", chat.ask),
            web.post("/stop", chat.stop),
            web.post("/clear", chat.clear),
        ]
    )
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(chat._close)
    return app


def as_json(event: Event, seconds: float) -> dict[str, Any] | None:
    """An event for the page; None if there is nothing to show.

    Args:
        event: The event.
        seconds: Time since the question.
    """
    if isinstance(event, TextEvent):
        return {"kind": "text", "step": event.step, "text": event.text}
    if isinstance(event, DrawingEvent):
        data = None if event.picture is None else b64encode(event.picture.data).decode()
        url = data and f"data:image/png;base64,{data}"
        return {"kind": "drawing", "step": event.step, "share": event.share, "url": url}
    if isinstance(event, EndEvent):
        failure = event.response.failure
        if failure is not None:
            return {"kind": "error", "message": failure.message}
        return {
            "kind": "end",
            "reason": event.response.outputs[0].finish_reason,
            "tokens": event.response.usage.completion_tokens,
            "seconds": round(seconds, 1),
        }
    return None


def _encoded(event: dict[str, Any] | None) -> bytes:
    """An event in the format of server-sent events; a comment shows that nothing is new."""
    return b": \n\n" if event is None else f"data: {json.dumps(event)}\n\n".encode()


def _question(
    form: dict[str, Any], uploads: list[Any], session: Session, settings: ChatSettings
) -> Question:
    sampling = _sampling(form, settings.sampling)
    if "again" in form:
        if session.last is None:
            raise InputError(
                "the conversation", found="no question", wanted="one", remedy="Ask it first."
            )
        return replace(session.last, sampling=sampling)
    named = [(one.filename, one.file.read()) for one in uploads if isinstance(one, FileField)]
    return Question(
        text=str(form.get("text", "")),
        pictures=checked_pictures(named),
        sampling=sampling,
        follow_up="follow_up" in form,
    )


def _sampling(form: dict[str, Any], default: Sampling) -> Sampling:
    """The sampling of a question.

    Raises:
        InputError: If a value is not a number.
        ConfigError: If a value is out of range.
    """
    try:
        seed = int(form.get("seed", default.seed))
        temperature = float(form.get("temperature", default.temperature))
    except (TypeError, ValueError):
        seed, temperature = -1, default.temperature
    if not 0 <= seed <= MAX_SEED:
        raise InputError(
            "seed and temperature",
            found=f"{form.get('seed')!r} and {form.get('temperature')!r}",
            wanted=f"a whole number from 0 to {MAX_SEED}, and a number",
            remedy="Correct them.",
        )
    return replace(default, seed=seed, temperature=temperature)


def _answered(session: Session) -> bool:
    """Whether the last turn of the conversation answers the last question."""
    turns = session.conversation.turns
    return bool(turns) and turns[-1].question is session.last


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_read("chat.html.j2"))


def _read(name: str) -> str:
    return (files("mathcanvas_lightning.chat") / "page" / name).read_text(encoding="utf-8")
