"""Answers the questions of a benchmark of another program as `mathcanvas predict` answers records.

The questions are written to a file of records first, so journal, resume and folders of drawings
are those of `predict`, and `predict` itself gives the same answers to this file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from PIL import Image

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.requests import Message, Part
from mathcanvas_lightning.generation.run.answer_folders import folder_name, safe_name
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.module import QUIET_TRAINER, GenerationModule
from mathcanvas_lightning.generation.run.monitor import GenerationProgress, GenerationSummary
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from mathcanvas_lightning.generation.run.writer import ResponseWriter
from mathcanvas_lightning.records.files import read_records, write_records
from mathcanvas_lightning.records.marks import escape_marks
from mathcanvas_lightning.records.pictures import Picture, PictureError, load_pictures
from mathcanvas_lightning.records.record import Record, RecordInput, as_list

PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
MARK = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question of a benchmark."""

    index: str
    """Id, unique within its benchmark."""
    messages: tuple[Message, ...]
    """The conversation; the last message is the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answers to a question."""

    texts: tuple[str, ...]
    """One text for each sample; empty if the question failed."""
    drawings: tuple[tuple[Path, ...], ...]
    """Files of the drawings of each sample."""
    failure: str | None = None
    """Why there is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkFiles:
    """Where the questions and answers of a benchmark are kept."""

    folder: Path
    name: str
    """Name of the benchmark."""

    @property
    def source(self) -> RecordInput:
        """The file of questions; its output has `_answers` in its name."""
        name = safe_name(self.name)
        return RecordInput(path=str(self.folder / f"{name}.jsonl"), name=name.replace(":", "_"))

    @property
    def pictures(self) -> Path:
        """Folder of the pictures of the questions."""
        return self.folder / f"{safe_name(self.name)}_pictures"

    @property
    def folders(self) -> Path:
        """Parent of the folders with the steps and drawings of the answers."""
        return self.source.output_path.with_suffix("")


class ConversationPrompt:
    """Builds the conversation that a record contains in its field `messages`."""

    fields = frozenset({"messages"})

    def __call__(self, record: Record, pictures: Sequence[Picture]) -> tuple[Message, ...]:
        """Builds the conversation.

        Args:
            record: A record whose `messages` have a role and parts: texts, and null for the next
                picture.
            pictures: Its pictures in order.

        Returns:
            The messages.
        """
        remaining = iter(pictures)
        return tuple(
            Message(
                role=one["role"],
                parts=tuple(next(remaining) if part is None else part for part in one["parts"]),
            )
            for one in record.values["messages"]
        )


def answer_questions(
    questions: Sequence[Question],
    module: GenerationModule,
    files: BenchmarkFiles,
    *,
    accelerator: str = "auto",
    devices: list[int] | int = 1,
    rerun: bool = False,
) -> list[Reply]:
    """Answers questions; a run that was interrupted is resumed.

    Args:
        questions: Questions with different ids.
        module: The model and its sampling.
        files: Where questions and answers are kept.
        accelerator: Accelerator of the Trainer.
        devices: Devices of the Trainer; one.
        rerun: Answer all questions again.

    Returns:
        The answers, in order.

    Raises:
        OutputError: If there are answers of another model or with other sampling.
        BackendError: If the model can't be loaded, or stops working.
    """
    write_questions(questions, files)
    data = RecordDataModule(
        [files.source], prompt=ConversationPrompt(), rerun=rerun, on_fault="skip"
    )
    callbacks: list[Callback] = [
        ReasoningFolders(str(files.folders)),
        ResponseWriter(),
        GenerationProgress(),
        GenerationSummary(),
    ]
    options = {**QUIET_TRAINER, "devices": devices}
    trainer = Trainer(accelerator=accelerator, callbacks=callbacks, **options)
    trainer.predict(module, datamodule=data, return_predictions=False)
    return read_replies(questions, files)


def write_questions(questions: Sequence[Question], files: BenchmarkFiles) -> None:
    """Writes the file of questions, and their pictures beside it.

    Args:
        questions: The questions.
        files: Where they are written; pictures that exist are not changed.
    """
    files.pictures.mkdir(parents=True, exist_ok=True)
    records = (_record(one, files.pictures) for one in questions)
    write_records(Path(files.source.path), records, like=None)


def _record(question: Question, folder: Path) -> dict[str, Any]:
    pictures = [p for one in question.messages for p in one.parts if isinstance(p, Picture)]
    return {
        "sample_index": question.index,
        "query_cot": _query(question),
        "image": [_stored(picture, folder) for picture in pictures],
        "messages": [
            {
                "role": one.role,
                "parts": [part if isinstance(part, str) else None for part in one.parts],
            }
            for one in question.messages
        ],
    }


def _query(question: Question) -> str:
    """The texts of the user with marks for the pictures, for readers and for `predict`."""
    parts = [part for one in question.messages if one.role == "user" for part in one.parts]
    has_pictures = any(isinstance(part, Picture) for part in parts)
    texts = (part if isinstance(part, str) else None for part in parts)
    return "\n".join(
        MARK if text is None else escape_marks(text) if has_pictures else text for text in texts
    )


def _stored(picture: Picture, folder: Path) -> str:
    path = folder / f"{blake2b(picture.data, digest_size=16).hexdigest()}.png"
    if not path.exists():
        with written_whole(path) as temporary:
            temporary.write_bytes(picture.data)
    return f"{folder.name}/{path.name}"


def read_replies(questions: Iterable[Question], files: BenchmarkFiles) -> list[Reply]:
    """Reads the answers that a run has written.

    Args:
        questions: The questions of the run.
        files: Where the answers are kept.
    """
    source = files.source
    found: dict[str, Reply] = {}
    for record in read_records(source.output_path):
        index = str(record["sample_index"])
        found[index] = _reply(record, index, source, files.folders)
    return [found[question.index] for question in questions]


def _reply(record: Mapping[str, Any], index: str, source: RecordInput, folders: Path) -> Reply:
    if (failure := record.get(source.error_field)) is not None:
        return Reply(texts=(), drawings=(), failure=str(failure))
    value = record[source.response_field]
    texts = tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    found = (folders / folder_name(index, number) for number in range(1, len(texts) + 1))
    return Reply(texts=texts, drawings=tuple(tuple(_by_number(one / "images")) for one in found))


def _by_number(folder: Path) -> list[Path]:
    paths = folder.glob("reasoning_image_*.png")
    return sorted(paths, key=lambda path: int(path.stem.rpartition("_")[2]))


def to_parts(values: Iterable[Any], place: str) -> tuple[Part, ...]:
    """Converts what another program gives as text or picture.

    Args:
        values: Texts, and Pillow images or (as one-element lists) references to pictures.
        place: Location, for error messages.

    Returns:
        Texts and encoded pictures; blank texts are left out.

    Raises:
        InputError: If a picture is unusable.
    """
    parts: list[Part] = []
    for value in values:
        if isinstance(value, str):
            parts += [value] if value.strip() else []
        elif isinstance(value, Image.Image):
            parts.append(Picture(_png(value), place=place))
        else:
            parts += _loaded(value, place)
    return tuple(parts)


def _loaded(value: Any, place: str) -> tuple[Picture, ...]:
    try:
        return load_pictures(as_list(value), ".", place=place, access="any")
    except PictureError as error:
        raise InputError(
            place, found=str(error), wanted="a picture", remedy="Correct the benchmark's data."
        ) from None


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    kept = image if image.mode in PNG_MODES else image.convert("RGB")
    kept.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
