"""Which fields of a request a server understands, learned from the requests that it refuses."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mathcanvas_lightning.generation.backends.server.failures import RequestFailedError

logger = logging.getLogger(__name__)

GUIDE, LIMIT, NEW_LIMIT = "structured_outputs", "max_tokens", "max_completion_tokens"
_STREAM = re.compile(r"\bstream(ing|ed)?\b", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class Dialect:
    """The fields that a server does not understand.

    A refused request is sent again without the field that the server may have refused. If this
    request succeeds, later ones leave the field out from the start.
    """

    dropped: set[str] = field(default_factory=set)
    """Fields that are left out."""
    has_new_limit: bool = False
    """Whether `max_tokens` is named `max_completion_tokens`, as for OpenAI's reasoning models."""

    def translate(self, body: Mapping[str, Any], *, is_strict: bool) -> dict[str, Any]:
        """The body of a request in the fields that the server understands.

        Args:
            body: Field -> value.
            is_strict: Whether the request fails if its answers cannot be guided.
        """
        dropped = self.dropped - {GUIDE} if is_strict else self.dropped
        kept = {name: value for name, value in body.items() if name not in dropped}
        if self.has_new_limit and LIMIT in kept:
            kept = {**kept, NEW_LIMIT: kept[LIMIT]}
            del kept[LIMIT]
        return kept

    def alternatives(
        self, failed: RequestFailedError, body: Mapping[str, Any], *, is_strict: bool
    ) -> Iterator["Dialect"]:
        """Dialects in which the server may accept a request that it has refused.

        Args:
            failed: The refusal.
            body: The body that was refused.
            is_strict: Whether the request fails if its answers cannot be guided.

        Yields:
            Each leaves out one more field than this one.
        """
        if not failed.is_bad_request:
            return
        message = str(failed)
        if LIMIT in body and NEW_LIMIT in message:
            yield Dialect(dropped=self.dropped, has_new_limit=True)
        if GUIDE in body and not is_strict:  # some servers refuse it without its name
            yield self._without(GUIDE)
        if body.get("n", 1) != 1:
            yield self._without("n")
        if "stream_options" in body and "stream_options" in message:
            yield self._without("stream_options")
        elif "stream" in body and _STREAM.search(message):
            yield self._without("stream", "stream_options")

    def learn(self, other: "Dialect", failed: RequestFailedError) -> None:
        """Takes over a dialect that the server has accepted.

        Args:
            other: The dialect.
            failed: The refusal before it, for the log.
        """
        new = other.dropped - self.dropped
        if new or other.has_new_limit != self.has_new_limit:
            changes = f"no {' and no '.join(sorted(new))}" if new else f"{NEW_LIMIT}"
            logger.warning("the server refused a request (%s): from now on %s", failed, changes)
        self.dropped |= other.dropped
        self.has_new_limit |= other.has_new_limit

    def _without(self, *names: str) -> "Dialect":
        return Dialect(dropped=self.dropped | set(names), has_new_limit=self.has_new_limit)
