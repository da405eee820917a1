"""RecordDataModule: builds requests for all records of the input files that have no answer yet."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from filelock import FileLock
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from mathcanvas_lightning.errors import ConfigError, InputError, MathCanvasError, OutputError
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt, PromptBuilder
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
)
from mathcanvas_lightning.generation.run.batching import Batching, FixedSize
from mathcanvas_lightning.generation.run.journal import (
    Entry,
    acquire_lock,
    clear_finish_marks,
    is_rerun,
    journal_folder,
    read_journal,
    start_rerun,
)
from mathcanvas_lightning.generation.run.module import RequestBatch
from mathcanvas_lightning.records.fetching import PictureReader, Pictures
from mathcanvas_lightning.records.filters import RecordFilter
from mathcanvas_lightning.records.pictures import PictureError
from mathcanvas_lightning.records.record import Record, RecordInput, iter_records
from mathcanvas_lightning.records.survey import RecordKey, survey

PROMPT_FAILURE = "prompt"
"""Failure kind of a record that does not fit the prompt."""
NUM_TRIED = 10
"""Number of records on which the prompt is tested before the run."""
Prepared = GenerationRequest | GenerationResponse
"""A request, or the failure of a record from which no request could be built."""


class RecordDataModule(LightningDataModule):
    """Builds requests for all records without an answer, and distributes them over the ranks.

    Args:
        inputs: Files of records, with their outputs.
        prompt: Builds a conversation from a record; default: `ChatPrompt()`.
        filters: A record that one of the filters rejects is not answered, but written to the
            output unchanged.
        batching: Groups requests; default: `FixedSize(64)`. The number of requests that are
            answered at a time depends only on the backend's queue.
        template_options: More variables for the model's chat template.
        rerun: Answer all records again. Earlier answers are moved to the journal's folder
            `replaced`. To resume such a run after a kill, start it without this option.
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
                "data.inputs", found="none", wanted="a file of records", remedy="Add one."
            )
        self.inputs = inputs
        self.prompt = prompt or ChatPrompt()
        self.filters = filters or []
        self.batching = batching or FixedSize()
        self.template_options = template_options or {}
        self.rerun = rerun
        readers = {one.fetching: PictureReader(one.fetching) for one in inputs}
        self._pictures = {one.label: readers[one.fetching] for one in inputs}
        self.prepare_data_per_node = False
        self.wanted: dict[str, RecordKey] = {}
        """Uid -> key of the records that need an answer: all but those that filters reject and
        those with a response in the input."""
        self.pending: dict[str, RecordKey] = {}
        """Uid -> key of the records that this run answers, over all ranks."""
        self.answered: dict[str, Entry] = {}
        """Uid -> journal entry of the answers from earlier runs."""
        self._locks: list[FileLock] = []

    def prepare_data(self) -> None:
        """Locks the outputs for this run; with `rerun`, moves their journals away.

        Raises:
            InputError: If the inputs have errors; lists them.
            OutputError: If another run writes to an output.
        """
        if self.rerun:
            self._survey()  # raises before a journal is moved
        folders = [journal_folder(one.output_path) for one in self.inputs]
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                self._locks.append(acquire_lock(folder / "lock"))
        except OutputError:
            self._unlock()
            raise
        for folder in folders if self.rerun else ():
            start_rerun(folder)
        clear_finish_marks(folders[0])

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Reads all inputs and journals, and selects the records to answer.

        Args:
            stage: Not used.

        Raises:
            InputError: If the inputs have errors (lists them), or do not fit the prompt.
            OutputError: If earlier answers were made with other prompts.
        """
        folders = {one.label: journal_folder(one.output_path) for one in self.inputs}
        entries = {label: read_journal(folder) for label, folder in folders.items()}
        reruns = {label for label, folder in folders.items() if is_rerun(folder)}
        self.wanted, self.pending, self.answered = {}, {}, {}
        for key in self._survey():
            entry = entries[key.label].get((key.uid, key.digest))
            if entry is None and key.has_response and key.label not in reruns:
                continue
            self.wanted[key.uid] = key
            if entry is not None and entry.failure is None:
                self.answered[key.uid] = entry
            else:
                self.pending[key.uid] = key
        self._require_same_prompts()
        self._try_prompts()

    def predict_dataloader(self) -> DataLoader[RequestBatch]:
        """Loads the requests of this rank in batches.

        Returns:
            A loader without workers, because reading records is fast compared to answering them.
        """
        keys = self.pending if self.trainer is None else self.share(self.trainer)
        return DataLoader(_RequestStream(self, keys), batch_size=None)

    def share(self, trainer: Trainer) -> dict[str, RecordKey]:
        """Uid -> key of the records that a rank answers: of n ranks, each takes every n-th record.

        Records with an answer are counted too, so that ranks never take the same record, even if
        they read the journal at different times.
        """
        share = islice(self.wanted.items(), trainer.global_rank, None, trainer.world_size)
        return {uid: key for uid, key in share if uid in self.pending}

    def requests(self) -> Iterator[GenerationRequest]:
        """All requests, for use without a Trainer.

        Yields:
            Requests for the pending records; records without a valid request are skipped.
        """
        for prepared in self.prepared(self.pending):
            if isinstance(prepared, GenerationRequest):
                yield prepared

    def prepared(self, wanted: Mapping[str, RecordKey]) -> Iterator[Prepared]:
        """Reads records and builds their requests; pictures at URLs are read ahead.

        Args:
            wanted: Uid -> key of the records.

        Yields:
            A request or a failure for each record.

        Raises:
            InputError: If an input has changed since `setup`.
        """
        for one in self.inputs:
            records = self._records(one, wanted)
            for record, pictures in self._pictures[one.label].read_ahead(records):
                yield self._prepare(record, pictures)

    def _records(self, one: RecordInput, wanted: Mapping[str, RecordKey]) -> Iterator[Record]:
        keys = {key.position: key for key in wanted.values() if key.label == one.label}
        records = iter_records(one, self._fields) if keys else ()
        for record in records:
            key = keys.pop(record.position, None)
            if key is not None:
                if (record.uid, record.digest) != (key.uid, key.digest):
                    raise _changed(one)
                yield record
            if not keys:
                break
        if keys:
            raise _changed(one)

    def prepare_record(self, record: Record) -> Prepared:
        """Builds the request for a record.

        Args:
            record: The record.

        Returns:
            A request; or a failure if a picture is unreadable or the prompt does not fit.
        """
        label = record.uid.partition(":")[0]
        return self._prepare(record, self._pictures[label].read(record))

    def _prepare(self, record: Record, pictures: Pictures) -> Prepared:
        try:
            if isinstance(pictures, PictureError):
                raise pictures
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

    @property
    def _fields(self) -> Collection[str] | None:
        """Fields that the prompt uses; None if unknown."""
        fields: Collection[str] | None = getattr(self.prompt, "fields", None)
        return fields

    def _survey(self) -> list[RecordKey]:
        return survey(self.inputs, self.filters, self._fields)

    def _require_same_prompts(self) -> None:
        """Compares the prompt of one earlier answer of each input with the current prompt."""
        first = self._first_of_each(self.answered, 1)
        for now in self.prepared(first):
            entry = self.answered[now.uid]
            if isinstance(now, GenerationRequest) and now.text_digest != entry.prompt_digest:
                raise OutputError(
                    str(entry.path.parent),
                    found=f"an answer of {now.uid} to another prompt",
                    wanted="answers to the prompts of this run",
                    remedy="Set rerun: true to answer all records again, or choose another output.",
                )

    def _try_prompts(self) -> None:
        """Tests the prompt on the first records of new inputs; raises if it fails for all of them.

        Inputs with answers are skipped: their prompt worked before.
        """
        has_answers = {self.wanted[uid].label for uid in self.answered}
        tried = self._first_of_each(self.pending, NUM_TRIED)
        results = list(
            self.prepared({u: key for u, key in tried.items() if key.label not in has_answers})
        )
        failures = [one.failure for one in results if isinstance(one, GenerationResponse)]
        errors = [one.message for one in failures if one and one.kind == PROMPT_FAILURE]
        if results and len(errors) == len(results):
            raise InputError(
                "data.prompt",
                found=f"an error with each of the first {len(results)} records ({errors[0]})",
                wanted="a prompt that fits the records",
                remedy="Change the prompt, or exclude such records with a filter.",
            )

    def _first_of_each(self, uids: Iterable[str], count: int) -> dict[str, RecordKey]:
        """The first `count` records of each input."""
        taken: Counter[str] = Counter()
        first: dict[str, RecordKey] = {}
        for uid in uids:
            key = self.wanted[uid]
            taken[key.label] += 1
            if taken[key.label] <= count:
                first[uid] = key
        return first

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """Releases the output locks.

        Args:
            exception: Not used.
        """
        self._unlock()

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Releases the output locks.

        Args:
            stage: Not used.
        """
        self._unlock()

    def _unlock(self) -> None:
        for lock in self._locks:
            lock.release()
        self._locks = []


class _RequestStream(IterableDataset[RequestBatch]):
    def __init__(self, data: RecordDataModule, wanted: Mapping[str, RecordKey]) -> None:
        self._data = data
        self._wanted = wanted

    def __iter__(self) -> Iterator[RequestBatch]:
        num_left = len(self._wanted)
        for group in self._data.batching(self._data.prepared(self._wanted)):
            num_left -= len(group)
            yield RequestBatch(
                requests=(one for one in group if isinstance(one, GenerationRequest)),
                failures=(one for one in group if isinstance(one, GenerationResponse)),
                is_last=num_left == 0,
            )


def _changed(source: RecordInput) -> InputError:
    return InputError(
        source.path,
        found="other records than at the start of this run",
        wanted="a file that does not change during the run",
        remedy="Start the run again; finished answers are kept.",
    )
