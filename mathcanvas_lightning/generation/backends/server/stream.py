"""Joins the events of a streamed answer to the body that the server sends without streaming.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
from typing import Any

from mathcanvas_lightning.generation.backends.server.api import (
    THOUGHTS,
    BadBodyError,
    text_of,
    thoughts_of,
)

CONTENT_TYPE = "text/event-stream"
END = "[DONE]"


class StreamedAnswer:
    """The answer so far; takes the bytes of the stream as they arrive, cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None
        self._error: dict[str, Any] | None = None
        self._is_complete = False
        self.num_events = 0
        """Number of events; comments that only keep the connection open don't count."""

    def feed(self, data: bytes) -> None:
        """Adds bytes.

        Raises:
            BadBodyError: If an event does not follow the API.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._read_line(line.rstrip(b"\r").decode(errors="replace"))

    @property
    def text(self) -> str:
        """Text of the first choice so far; its thoughts while there is no text."""
        choice = self._choices.get(0, {})
        return "".join(choice.get("content") or choice.get("thoughts") or ())

    def finish(self) -> dict[str, Any]:
        """The whole answer, after the last byte.

        Returns:
            The body of a chat completion, or of an error that the stream reported.

        Raises:
            BadBodyError: If the stream ended early.
        """
        self.feed(b"\n\n")
        if self._error is not None:
            return self._error
        choices = [self._choices[index] for index in sorted(self._choices)]
        if not self._is_complete and not all(choice["finish_reason"] for choice in choices):
            raise BadBodyError("the answer was truncated: the stream has no end")
        return {"choices": [_joined(choice) for choice in choices], "usage": self._usage}

    def _read_line(self, line: str) -> None:
        field, _, value = line.partition(":")
        if field == "data":
            self._lines.append(value.removeprefix(" "))
        elif not line and self._lines:
            data, self._lines = "\n".join(self._lines), []
            self.num_events += 1
            if data.strip() == END:
                self._is_complete = True
            else:
                self._read_event(data)

    def _read_event(self, data: str) -> None:
        try:
            event = json.loads(data)
            if event.get("error") and not event.get("choices"):
                self._error = event
                return
            self._usage = event.get("usage") or self._usage
            for choice in event.get("choices") or ():
                self._add(choice)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            message = f"not an event of a chat completion: {data[:500]}"
            raise BadBodyError(message) from None

    def _add(self, choice: dict[str, Any]) -> None:
        index = int(choice.get("index") or 0)
        so_far = self._choices.setdefault(
            index,
            {
                "index": index,
                "content": [],
                "thoughts": [],
                "refusal": [],
                "token_ids": [],
                "finish_reason": None,
            },
        )
        delta = choice.get("delta") or choice.get("message") or {}
        pieces = {
            "content": text_of(delta.get("content")),
            "thoughts": thoughts_of(delta),
            "refusal": text_of(delta.get("refusal")),
        }
        for name, piece in pieces.items():
            if piece is not None:
                so_far[name].append(piece)
        so_far["token_ids"] += choice.get("token_ids") or ()
        so_far["finish_reason"] = choice.get("finish_reason") or so_far["finish_reason"]


def _joined(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": choice["index"],
        "message": {
            "content": "".join(choice["content"]) if choice["content"] else None,
            THOUGHTS[0]: "".join(choice["thoughts"]) or None,
            "refusal": "".join(choice["refusal"]) or None,
        },
        "finish_reason": choice["finish_reason"],
        "token_ids": choice["token_ids"],
    }
