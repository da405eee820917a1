"""RecordDataModule: the records of some files that have no answer yet, as requests."""

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
    begin_anew,
    clear_ends,
    journal_folder,
    read_journal,
    replaces_responses,
    take_lock,
)
from mathcanvas_lightning.generation.run.module import RequestBatch
from mathcanvas_lightning.records.filters import RecordFilter
from mathcanvas_lightning.records.pictures import PictureError, read_pictures
from mathcanvas_lightning.records.record import Record, RecordInput, iter_records
from mathcanvas_lightning.records.survey import RecordKey, survey

PROMPT_FAILURE = "prompt"
"""Kind of failure of a record that the prompt doesn't fit."""
NUM_TRIED = 10
"""Records on which the prompt is tried."""
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
        rerun: Ask all again. Earlier answers are put aside, into the journal's folder `replaced`;
            a run that was killed goes on without it.
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
        self.wanted: dict[str, RecordKey] = {}
        """Records that shall have an answer of these runs, by uid: all but those that filters
        refuse, and those with a response in the input."""
        self.pending: dict[str, RecordKey] = {}
        """Those that have none yet: what this run asks, over all ranks."""
        self.answered: dict[str, Entry] = {}
        """Answers of earlier runs, by uid."""
        self._locks: list[FileLock] = []

    def prepare_data(self) -> None:
        """Takes the outputs for this run alone; with `rerun`, puts their journals aside.

        Raises:
            InputError: If the inputs have faults; it lists them.
            OutputError: If another run writes there.
        """
        if self.rerun:
            self._survey()  # nothing is put aside for inputs with faults
        folders = [journal_folder(one.output_path) for one in self.inputs]
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                self._locks.append(take_lock(folder / "lock"))
        except OutputError:
            self._unlock()
            raise
        for folder in folders if self.rerun else ():
            begin_anew(folder)
        clear_ends(folders[0])

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Reads all inputs and journals, and finds what is to be asked.

        Args:
            stage: Not used.

        Raises:
            InputError: If the inputs have faults (it lists them), or the prompt doesn't fit them.
            OutputError: If earlier answers were made from other prompts.
        """
        folders = {one.label: journal_folder(one.output_path) for one in self.inputs}
        entries = {label: read_journal(folder) for label, folder in folders.items()}
        anew = {label for label, folder in folders.items() if replaces_responses(folder)}
        self.wanted, self.pending, self.answered = {}, {}, {}
        for key in self._survey():
            entry = entries[key.label].get((key.uid, key.digest))
            if entry is None and key.has_response and key.label not in anew:
                continue
            self.wanted[key.uid] = key
            if entry is not None and entry.failure is None:
                self.answered[key.uid] = entry
            else:
                self.pending[key.uid] = key
        self._require_same_prompts()
        self._try_prompts()

    def predict_dataloader(self) -> DataLoader[RequestBatch]:
        """Batches of requests of this rank.

        Returns:
            A loader in this process: reading records costs little beside answering them.
        """
        mine = self.pending if self.trainer is None else self.share(self.trainer)
        return DataLoader(_RequestStream(self, mine), batch_size=None)

    def share(self, trainer: Trainer) -> dict[str, RecordKey]:
        """What the process of a Trainer asks, by uid: of n ranks, every n-th wanted record.

        Counted over all that are wanted, so that ranks which see different journals still take
        different records.
        """
        own = islice(self.wanted.items(), trainer.global_rank, None, trainer.world_size)
        return {uid: key for uid, key in own if uid in self.pending}

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

        Raises:
            InputError: If an input has changed since `setup`.
        """
        for one in self.inputs:
            keys = {key.position: key for key in wanted.values() if key.label == one.label}
            records = iter_records(one, self._fields) if keys else ()
            for record in records:
                key = keys.pop(record.position, None)
                if key is not None:
                    if (record.uid, record.digest) != (key.uid, key.digest):
                        raise _changed(one)
                    yield self.prepare_record(record)
                if not keys:
                    break
            if keys:
                raise _changed(one)

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

    @property
    def _fields(self) -> Collection[str] | None:
        """Fields that the prompt reads."""
        fields: Collection[str] | None = getattr(self.prompt, "fields", None)
        return fields

    def _survey(self) -> list[RecordKey]:
        return survey(self.inputs, self.filters, self._fields)

    def _require_same_prompts(self) -> None:
        """Compares an earlier answer of each input with what would be asked now."""
        first = self._first_of_each(self.answered, 1)
        for now in self.prepared(first):
            entry = self.answered[now.uid]
            if isinstance(now, GenerationRequest) and now.text_digest != entry.prompt_digest:
                raise OutputError(
                    str(entry.path.parent),
                    found=f"an answer of {now.uid} to another prompt",
                    wanted="answers to the prompts of this run",
                    remedy="Set rerun: true to ask all again, or name another output.",
                )

    def _try_prompts(self) -> None:
        """Tries the prompt of inputs without answers: what fails with all of a few may be wrong."""
        has_answers = {self.wanted[uid].label for uid in self.answered}
        tried = self._first_of_each(self.pending, NUM_TRIED)
        made = list(
            self.prepared({u: key for u, key in tried.items() if key.label not in has_answers})
        )
        failures = [one.failure for one in made if isinstance(one, GenerationResponse)]
        prompts = [one for one in failures if one is not None and one.kind == PROMPT_FAILURE]
        if made and len(prompts) == len(made):
            raise InputError(
                "data.prompt",
                found=f"an error with each of the first {len(made)} records ({prompts[0].message})",
                wanted="a prompt that fits the records",
                remedy="Change the prompt, or leave such records out by a filter.",
            )

    def _first_of_each(self, uids: Iterable[str], count: int) -> dict[str, RecordKey]:
        """The first records of each input among some."""
        taken: Counter[str] = Counter()
        first: dict[str, RecordKey] = {}
        for uid in uids:
            key = self.wanted[uid]
            taken[key.label] += 1
            if taken[key.label] <= count:
                first[uid] = key
        return first

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
        wanted="a file that stays as it is while it is read",
        remedy="Start again; what has been answered stays.",
    )
