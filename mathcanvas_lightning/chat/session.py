"""The conversations of open pages."""

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from mathcanvas_lightning.chat.conversation import Conversation, Question
from mathcanvas_lightning.errors import InputError

MAX_SESSIONS = 32
"""Number of pages whose conversations are kept; the oldest is dropped first."""


@dataclass(slots=True, kw_only=True)
class Session:
    """The conversation of a page."""

    conversation: Conversation = field(default_factory=Conversation)
    last: Question | None = None
    """The last question."""
    stop: threading.Event | None = None
    """Stops the answer in progress; None if no answer is in progress."""

    def begin(self) -> threading.Event:
        """Starts an answer, and returns what stops it.

        Raises:
            InputError: If another answer is in progress.
        """
        if self.stop is not None and not self.stop.is_set():
            raise InputError(
                "the conversation",
                found="an answer in progress",
                wanted="one at a time",
                remedy="Wait for it, or stop it.",
            )
        self.stop = threading.Event()
        return self.stop

    def halt(self) -> None:
        """Stops the answer in progress."""
        if self.stop is not None:
            self.stop.set()

    def clear(self) -> None:
        """Forgets the conversation."""
        self.halt()
        self.conversation, self.last = Conversation(), None


@dataclass(slots=True)
class Sessions:
    """Secret token of a page -> its session."""

    _found: OrderedDict[str, Session] = field(default_factory=OrderedDict)

    def open(self) -> str:
        """Starts a session, and returns its token."""
        token = secrets.token_urlsafe(16)
        self._found[token] = Session()
        while len(self._found) > MAX_SESSIONS:
            self._found.popitem(last=False)[1].halt()
        return token

    def find(self, token: str) -> Session | None:
        """The session of a token; None if the token is unknown."""
        if token in self._found:
            self._found.move_to_end(token)
        return self._found.get(token)

    def halt(self) -> None:
        """Stops all answers in progress."""
        for session in self._found.values():
            session.halt()
