"""RecordDataModule: the records of some files that have no answer yet, as requests."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from mathcanvas_lightning.errors import ConfigError, InputError, MathCanvasError, OutputError
from mathcanvas_lightning.generation.batching import Batching, FixedSize
from mathcanvas_lightning.generation.filters import RecordFilter
from mathcanvas_lightning.generation.journal import Entry, journal_folder, read_journal
from mathcanvas_lightning.generation.module import RequestBatch
from mathcanvas_lightning.generation.pictures import PictureError, read_pictures
from mathcanvas_lightning.generation.prompts import ChatPrompt, PromptBuilder
from mathcanvas_lightning.generation.records import (
    Record,
    RecordInput,
    RecordKey,
    iter_records,
    survey,
)
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
)

log = logging.getLogger(__name__)

PROMPT_FAILURE = "prompt"
"""Kind of failure of a record that the prompt doesn't fit."""
Prepared = GenerationRequest | GenerationResponse
"""A request, or the failure of a record that can't be made into one."""


class RecordDataModule(LightningDataModule):
    """Makes requests of all records that aren't answered; each rank takes a part of them.

    Args:
        inputs: Files of records, and where their answers go.
        prompt: Makes a conversation of a record; `ChatPrompt()` by default.
        filters: Records that any of them refuses are not asked, and are written out as they are.
        batching: Groups requests; `FixedSize(64)` by default. The backend's queue decides how many
            are answered at a time, not this.
        template_options: Further variables of the model's chat template.
        rerun: Throw all earlier answers away.
    """

    def __init__(
        self,
        inputs: list[RecordInput],
        prompt: PromptBuilder | None = None,
        filters: list[RecordFilter] | None = None,
        batching: Batching | None = None,
        template_options: dict[str, Any] | None = None,
        rerun: bool = False,
    ) -> None:
        super().__init__()
        if not inputs:
            raise ConfigError(
                "data.inputs", found="none", wanted="a file of records", remedy="Name one."
            )
        self.inputs = inputs
        self.prompt = prompt or ChatPrompt()
        self.filters = filters or []
        self.batching = batching or FixedSize()
        self.template_options = template_options or {}
        self.rerun = rerun
        self.prepare_data_per_node = False
        self.pending: dict[str, RecordKey] = {}
        """What this run asks, over all ranks, by uid."""
        self.answered: dict[str, Entry] = {}
        """Answers of earlier runs that stay, by uid."""
        self._locks: list[FileLock] = []

    def prepare_data(self) -> None:
        """Takes the outputs for this run alone; with `rerun`, throws their journals away.

        Raises:
            InputError: If the inputs have faults; it lists them.
            OutputError: If another run writes there.
        """
        if self.rerun:
            survey(self.inputs, self.filters)  # nothing is thrown away for inputs with faults
        for one in self.inputs:
            folder = journal_folder(one.output_path)
            self._lock(folder)
            if self.rerun:
                for path in folder.glob("rank*.jsonl"):
                    path.unlink()

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Reads all inputs and journals, and finds what is to be asked.

        Args:
            stage: Not used.

        Raises:
            InputError: If the inputs have faults (it lists them), or the prompt doesn't fit them.
            OutputError: If earlier answers were made from other prompts.
        """
        keys = survey(self.inputs, self.filters)
        entries: dict[str, Entry] = {}
        for one in self.inputs:
            entries |= read_journal(journal_folder(one.output_path))
        self.answered = {
            key.uid: entries[key.uid] for key in keys if _is_answered(key, entries.get(key.uid))
        }
        self.pending = {
            key.uid: key
            for key in keys
            if key.uid not in self.answered and (self.rerun or not key.has_response)
        }
        self._require_same_prompts(keys)
        self._try_prompts()

    def predict_dataloader(self) -> DataLoader[RequestBatch]:
        """Batches of requests of this rank.

        Returns:
            A loader in this process: reading records costs little beside answering them.
        """
        mine = self.pending if self.trainer is None else self.share(self.trainer)
        return DataLoader(_RequestStream(self, mine), batch_size=None)

    def share(self, trainer: Trainer) -> dict[str, RecordKey]:
        """What the process of a Trainer asks, by uid: every n-th pending record of n ranks."""
        return dict(list(self.pending.items())[trainer.global_rank :: trainer.world_size])

    def requests(self) -> Iterator[GenerationRequest]:
        """All requests, one after the other: for use without a Trainer.

        Yields:
            Requests of the pending records that can be made into one.
        """
        for prepared in self.prepared(self.pending):
            if isinstance(prepared, GenerationRequest):
                yield prepared

    def prepared(self, wanted: Mapping[str, RecordKey]) -> Iterator[Prepared]:
        """Reads and prepares records.

        Args:
            wanted: Which, by uid.

        Yields:
            A request for each, or its failure.
        """
        for one in self.inputs:
            positions = {key.position for key in wanted.values() if key.label == one.label}
            records = iter_records(one) if positions else ()
            for record in records:
                if record.position in positions:
                    yield self.prepare_record(record)
                    positions.remove(record.position)
                    if not positions:
                        break

    def prepare_record(self, record: Record) -> Prepared:
        """Makes a request of a record.

        Args:
            record: The record.

        Returns:
            A request, or a failure where a picture or the prompt does not allow one.
        """
        try:
            pictures = read_pictures(record)
            messages = self.prompt(record, pictures)
        except PictureError as error:
            failure = Failure(kind=error.kind, message=str(error))
        except MathCanvasError as error:
            failure = Failure(kind=PROMPT_FAILURE, message=str(error))
        else:
            return GenerationRequest(
                uid=record.uid,
                messages=messages,
                template_options=self.template_options,
                record=record.values,
            )
        return GenerationResponse(uid=record.uid, failure=failure)

    def _try_prompts(self) -> None:
        """Makes a prompt of each input's first record: what is wrong with it may be with all."""
        first: dict[str, RecordKey] = {}
        for key in self.pending.values():
            first.setdefault(key.label, key)
        for made in self.prepared({key.uid: key for key in first.values()}):
            failure = made.failure if isinstance(made, GenerationResponse) else None
            if failure is not None and failure.kind == PROMPT_FAILURE:
                raise InputError(
                    "data.prompt",
                    found=f"an error with the first record ({failure.message})",
                    wanted="a prompt that fits the records",
                    remedy="Change the prompt, or leave the record out by a filter.",
                )

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """Gives the outputs free.

        Args:
            exception: Not used.
        """
        self._unlock()

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Gives the outputs free.

        Args:
            stage: Not used.
        """
        self._unlock()

    def _lock(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._unlock()
            raise OutputError(
                str(folder),
                found="another run that writes there",
                wanted="one run an output",
                remedy="Wait for it, or name another output.",
            ) from None
        self._locks.append(lock)

    def _unlock(self) -> None:
        for lock in self._locks:
            lock.release()
        self._locks = []

    def _require_same_prompts(self, keys: Sequence[RecordKey]) -> None:
        """Compares an earlier answer of each input with what would be asked now."""
        first: dict[str, RecordKey] = {}
        for key in keys:
            if key.uid in self.answered:
                first.setdefault(key.label, key)
        for now in self.prepared({key.uid: key for key in first.values()}):
            entry = self.answered[now.uid]
            if isinstance(now, GenerationRequest) and now.text_digest != entry.prompt_digest:
                raise OutputError(
                    str(entry.path.parent),
                    found=f"an answer of {now.uid} to another prompt",
                    wanted="answers to the prompts of this run",
                    remedy="Set rerun: true to ask all again, or name another output.",
                )


class _RequestStream(IterableDataset[RequestBatch]):
    def __init__(self, data: RecordDataModule, wanted: Mapping[str, RecordKey]) -> None:
        self._data = data
        self._wanted = wanted

    def __iter__(self) -> Iterator[RequestBatch]:
        groups = iter(self._data.batching(self._data.prepared(self._wanted)))
        group = next(groups, None)
        while group is not None:
            following = next(groups, None)
            yield RequestBatch(
                requests=tuple(one for one in group if isinstance(one, GenerationRequest)),
                failures=tuple(one for one in group if isinstance(one, GenerationResponse)),
                is_last=following is None,
            )
            group = following


def _is_answered(key: RecordKey, entry: Entry | None) -> bool:
    return entry is not None and entry.failure is None and entry.digest == key.digest
