"""A conversation in the terminal: pictures by path, drawings as files and block characters."""

import contextlib
import re
import shlex
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import Image
from rich.console import Console
from rich.text import Text

from mathcanvas_lightning.chat.conversation import (
    LIMITS,
    ChatSettings,
    Conversation,
    Question,
    checked_pictures,
)
from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import InputError, MathCanvasError
from mathcanvas_lightning.generation.events import (
    DrawingEvent,
    EndEvent,
    StreamingBackend,
    TextEvent,
)
from mathcanvas_lightning.records.pictures import Picture

HELP = """Write a question and press Enter.
/picture FILE ...  add pictures to the next question; <image> in it marks their places
/again [SEED]      ask the last question with another seed
/clear             forget the conversation
/quit              end, as does Ctrl-D; Ctrl-C stops an answer"""
MAX_COLUMNS = 48
"""Maximum width of a drawing in the terminal, in characters."""


@dataclass(slots=True, kw_only=True)
class Talk:
    """A conversation in the terminal."""

    backend: StreamingBackend
    settings: ChatSettings
    console: Console
    folder: Path
    """Folder of the drawings."""
    conversation: Conversation = field(default_factory=Conversation)
    pictures: tuple[Picture, ...] = ()
    """Pictures of the next question."""
    last: Question | None = None

    def take(self, line: str) -> bool:
        """Does what a line says.

        Args:
            line: A question, or a command that starts with a slash.

        Returns:
            Whether the conversation continues.
        """
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return False
        try:
            if command == "/picture":
                self._add_pictures(rest)
            elif command == "/again":
                self._ask_again(rest)
            elif command == "/clear":
                self.conversation, self.last, self.pictures = Conversation(), None, ()
            elif re.fullmatch(r"/\w*", command):
                self._say(HELP)
            elif line.strip() or self.pictures:
                sampling, follows = self.settings.sampling, self.settings.follow_up
                self._ask(
                    Question(
                        text=line, pictures=self.pictures, sampling=sampling, follow_up=follows
                    )
                )
                self.pictures = ()
        except (MathCanvasError, OSError) as error:
            self._say(f"error: {error}")
        return True

    def _add_pictures(self, words: str) -> None:
        try:
            paths = [local_path(word) for word in shlex.split(words)]
        except ValueError as error:
            raise InputError(
                "/picture", found=str(error), wanted="paths", remedy="Close the quotes."
            ) from None
        self.pictures += checked_pictures([(str(path), _read(path)) for path in paths])
        self._say(f"{len(self.pictures)} pictures for the next question")

    def _ask_again(self, word: str) -> None:
        if self.last is None:
            raise InputError("/again", found="no question", wanted="one", remedy="Ask it first.")
        seed = self.last.sampling.seed + 1
        if word:
            if not word.strip().isdecimal():
                raise InputError(
                    "/again", found=word, wanted="a seed, 0 or more", remedy="Correct it."
                )
            seed = int(word)
        turns = self.conversation.turns
        if turns and turns[-1].question is self.last:
            self.conversation = self.conversation.without_last()
        self._ask(replace(self.last, sampling=replace(self.last.sampling, seed=seed)))

    def _ask(self, question: Question) -> None:
        request = self.conversation.request(question, self.settings.system_prompt)
        self.last = question
        shown = ""
        step = 0
        events = cast("Generator[object]", self.backend.stream(request))
        with contextlib.closing(events):
            try:
                for event in events:
                    if isinstance(event, TextEvent):
                        if event.step != step or not event.text.startswith(shown):
                            self._end_line(shown)
                            step, shown = event.step, ""
                        self._write(event.text[len(shown) :])
                        shown = event.text
                    elif isinstance(event, DrawingEvent) and event.picture is not None:
                        self._end_line(shown)
                        step, shown = 0, ""
                        self._show_drawing(event.picture)
                    elif isinstance(event, EndEvent):
                        self._end_line(shown)
                        self._end(question, event)
            except KeyboardInterrupt:
                self._say("\n(stopped)")

    def _end(self, question: Question, event: EndEvent) -> None:
        response = event.response
        self.conversation = self.conversation.with_answer(question, response)
        if response.failure is not None:
            self._say(f"error: {response.failure.message}")
        elif response.outputs[0].finish_reason != "stop":
            self._say(f"({response.outputs[0].finish_reason})")

    def _show_drawing(self, drawing: Picture) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max(_numbers(self.folder), default=0)
        path = self.folder / f"{number:03d}.png"
        with written_whole(path) as temporary:
            temporary.write_bytes(drawing.data)
        if self.console.is_terminal and self.console.color_system is not None:
            with Image.open(BytesIO(drawing.data)) as image:
                self.console.print(half_blocks(image, min(MAX_COLUMNS, self.console.width)))
        self._say(f"drawing: {path}")

    def _write(self, text: str) -> None:
        self.console.out(_printable(text), end="", highlight=False)

    def _say(self, text: str) -> None:
        self.console.out(_printable(text), highlight=False)

    def _end_line(self, shown: str) -> None:
        if shown:
            self.console.print()


def talk(
    backend: StreamingBackend,
    settings: ChatSettings,
    console: Console,
    folder: Path,
    read: Callable[[str], str] = input,
) -> None:
    """Talks until the end of the input.

    Args:
        backend: A started backend.
        settings: How questions are asked.
        console: Where to print.
        folder: Folder for the drawings.
        read: Reads a line after a prompt; raises EOFError at the end.
    """
    one = Talk(backend=backend, settings=settings, console=console, folder=folder)
    console.print(f"{backend.model_name}; /help lists the commands", markup=False, highlight=False)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while one.take(read("> ")):
            pass


def half_blocks(image: Image.Image, columns: int) -> Text:
    """An image as characters whose upper and lower halves are two pixels.

    Args:
        image: The image.
        columns: Maximum width, in characters.
    """
    width = max(1, min(columns, image.width))
    height = max(2, round(image.height * width / image.width))
    small = image.convert("RGB").resize((width, height + height % 2), Image.Resampling.BOX)
    text = Text()
    for row in range(0, small.height, 2):
        for column in range(width):
            upper, lower = small.getpixel((column, row)), small.getpixel((column, row + 1))
            text.append("\N{UPPER HALF BLOCK}", f"{_colour(upper)} on {_colour(lower)}")
        text.append("\n")
    return text


def _colour(pixel: object) -> str:
    red, green, blue = cast("tuple[int, int, int]", pixel)
    return f"rgb({red},{green},{blue})"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LIMITS.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(
            f"picture {path}", found=str(error), wanted="an image file", remedy="Check the path."
        ) from None


def _numbers(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.png") if path.stem.isdecimal()]


def _printable(text: str) -> str:
    """The text without control characters, which could command the terminal."""
    kept = (c if c in "\n\t" or c.isprintable() else " " * c.isspace() for c in text)
    return "".join(kept)
