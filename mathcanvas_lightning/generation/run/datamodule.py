"""RecordDataModule: builds requests for all records of the input files that have no answer yet."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from filelock import FileLock
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from mathcanvas_lightning.generation.prompts.building import (
    PROMPT_FAILURE,
    Prepared,
    build_request,
)
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt, PromptBuilder
from mathcanvas_lightning.generation.prompts.drawings import (
    SOLUTION_COLUMNS,
    GivenDrawings,
    require_drawings,
)
from mathcanvas_lightning.generation.requests import (
    GIVEN_DRAWINGS,
    DrawingsUse,
    GenerationRequest,
    GenerationResponse,
    Sampling,
)
from mathcanvas_lightning.generation.run.batching import Batching, FixedSize
from mathcanvas_lightning.generation.run.journal.answered import Selection, select_records
from mathcanvas_lightning.generation.run.journal.existing import (
    ExistingOutput,
    is_foreign,
    require_own_output,
    seed_journal,
)
from mathcanvas_lightning.generation.run.journal.folder import (
    acquire_lock,
    clear_finish_marks,
    is_unfinished_rerun,
    journal_folder,
    mark_owner,
    start_rerun,
)
from mathcanvas_lightning.generation.run.journal.lines import Entry, origin_of
from mathcanvas_lightning.generation.run.journal.origin import has_same_origin
from mathcanvas_lightning.generation.run.module import GenerationModule, RequestBatch
from mathcanvas_lightning.records.fetching import PictureReader
from mathcanvas_lightning.records.filters import RecordFilter
from mathcanvas_lightning.records.record import Record, RecordInput, iter_records
from mathcanvas_lightning.records.survey import OnFault, RecordKey, survey

log = logging.getLogger(__name__)

NUM_TRIED = 10
"""Number of records on which the prompt is tested before the run."""


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
        rerun: Answer all records again. Earlier answers are put aside, in numbered folders in the
            journal's folder `replaced`. If such a run is interrupted, the same command resumes it;
            after its end, the next one starts over.
        on_fault: "stop": a record with a fault (a missing picture, no question, ...) is an error
            before the start. "skip": it gets the reason instead of an answer.
        existing_output: "refuse": an output file without a journal is an error. "seed": the answers
            in it are kept. "replace": it is overwritten.
    """

    def __init__(
        self,
        inputs: list[RecordInput],
        prompt: PromptBuilder | None = None,
        filters: list[RecordFilter] | None = None,
        batching: Batching | None = None,
        template_options: dict[str, Any] | None = None,
        rerun: bool = False,
        on_fault: OnFault = "stop",
        existing_output: ExistingOutput = "refuse",
    ) -> None:
        super().__init__()
        if not inputs:
            raise ConfigError(
                "data.inputs",
                found="none",
                wanted="a file of records",
                remedy="Add one (generate-response: --text_only_input or --multimodal_input).",
            )
        self.inputs = inputs
        self.prompt = prompt or ChatPrompt()
        self.filters = filters or []
        self.batching = batching or FixedSize()
        self.template_options = template_options or {}
        self.rerun = rerun
        self.on_fault = on_fault
        self.existing_output = existing_output
        readers = {one.fetching: PictureReader(one.fetching) for one in inputs}
        self._pictures = {one.label: readers[one.fetching] for one in inputs}
        self.prepare_data_per_node = False
        self._selection = Selection()
        self._locks: list[FileLock] = []

    @property
    def wanted(self) -> dict[str, RecordKey]:
        """Uid -> key of the records that need an answer, see `Selection`."""
        return self._selection.wanted

    @property
    def pending(self) -> dict[str, RecordKey]:
        """Uid -> key of the records that this run answers, over all ranks."""
        return self._selection.pending

    @property
    def answered(self) -> dict[str, Entry]:
        """Uid -> journal entry of the answers from earlier runs."""
        return self._selection.answered

    @property
    def skipped(self) -> dict[str, dict[int, str]]:
        """Label of the input -> position -> fault of the records that are left out."""
        return self._selection.skipped

    def prepare_data(self) -> None:
        """Locks the outputs for this run; starts or continues a rerun.

        Raises:
            InputError: If the inputs have errors; lists them.
            OutputError: If another run writes to an output, or an output belongs to no run.
        """
        folders = [journal_folder(one.output_path) for one in self.inputs]
        foreign = [one for one in self.inputs if is_foreign(one)]
        for one in foreign if self.existing_output == "refuse" else ():
            require_own_output(one)
        # Raises before anything is changed.
        keys = self._survey() if self.rerun or foreign else []
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                self._locks.append(acquire_lock(folder / "lock"))
            for one in foreign if self.existing_output == "seed" else ():
                num = seed_journal(one, keys, self._fields)
                log.info("%s: kept %d answers of the existing file", one.output_path, num)
        except BaseException:
            self._unlock()
            raise
        for folder in folders:
            mark_owner(folder)
        if self.rerun and not self._resumes_rerun(keys):
            for folder in folders:
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
        self._selection = select_records(self.inputs, self._survey(), self._fields)
        if (use := self._drawings_use) in GIVEN_DRAWINGS:
            for one in self.inputs:
                require_drawings(one, use, self.skipped.get(one.label, {}))
        if (entry := self._other_prompt()) is not None:
            raise OutputError(
                str(entry.path.parent),
                found="an answer to another prompt",
                wanted="answers to the prompts of this run",
                remedy="Set rerun: true to answer all records again, or choose another output.",
            )
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
            records, options = self._records(one, wanted), self.template_options
            if (given := self._given_drawings(one)) is not None:
                records = given.passed(records)
            for record, pictures in self._pictures[one.label].read_ahead(records):
                yield build_request(record, pictures, self.prompt, options, given)

    def _records(self, one: RecordInput, wanted: Mapping[str, RecordKey]) -> Iterator[Record]:
        keys = {key.position: key for key in wanted.values() if key.label == one.label}
        skipped = self.skipped.get(one.label, {})
        records = iter_records(one, self._fields, skipped=skipped) if keys else ()
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

    @property
    def _module(self) -> GenerationModule | None:
        module = None if self.trainer is None else self.trainer.lightning_module
        return module if isinstance(module, GenerationModule) else None

    @property
    def _drawings_use(self) -> DrawingsUse:
        """Where the drawings of the answers come from; only a backend that draws says it."""
        return getattr(self._module and self._module.backend, "drawings", "own")

    def _given_drawings(self, one: RecordInput) -> GivenDrawings | None:
        use, module = self._drawings_use, self._module
        if use not in GIVEN_DRAWINGS or module is None:
            return None
        seed = (module.sampling or Sampling()).seed
        return GivenDrawings(use, one, seed=seed, skipped=self.skipped.get(one.label, {}))

    @property
    def _fields(self) -> Collection[str] | None:
        """Fields that decide about the answers; None if unknown."""
        fields: Collection[str] | None = getattr(self.prompt, "fields", None)
        if fields is None or self._drawings_use not in GIVEN_DRAWINGS:
            return fields
        return {*fields, *SOLUTION_COLUMNS, *(one.drawings_field for one in self.inputs)}

    def _survey(self) -> list[RecordKey]:
        return survey(self.inputs, self.filters, self._fields, self.on_fault)

    def _resumes_rerun(self, keys: Sequence[RecordKey]) -> bool:
        """Whether this run continues a rerun with the same model, sampling and prompt."""
        if not all(is_unfinished_rerun(journal_folder(one.output_path)) for one in self.inputs):
            return False
        self._selection = select_records(self.inputs, keys, self._fields)
        if (module := self._module) is not None:
            sampling = None if module.sampling is None else asdict(module.sampling)
            origin = origin_of(module.backend.model_name, module.backend.settings, sampling)
            if not has_same_origin(self.answered.values(), origin):
                return False
        if self._other_prompt() is not None:
            return False
        log.info("resuming a rerun: %d answers are kept", len(self.answered))
        return True

    def _other_prompt(self) -> Entry | None:
        """The first earlier answer of an input, if it belongs to another prompt."""
        first = self._first_of_each(self.answered, 1)
        for now in self.prepared(first):
            entry = self.answered[now.uid]
            if not isinstance(now, GenerationRequest) or entry.prompt_digest is None:
                continue
            # The second one is that of older versions, which did not hash pictures of examples.
            if entry.prompt_digest not in (now.prompt_digest, now.text_digest):
                return entry
        return None

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
