"""ReasoningFolders: writes one folder per answer, in the format of the public benchmark."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from mathcanvas_lightning.common.paths import is_vacant, local_path
from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.requests import Exchange, GenerationRequest, Part
from mathcanvas_lightning.generation.run.answer_folders import folder_name, safe_name, write_folder
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.journal.drawings import stored_steps
from mathcanvas_lightning.generation.run.journal.folder import (
    claim_folders,
    claimed_folders,
    has_answers,
    journal_folder,
)
from mathcanvas_lightning.generation.run.journal.lines import open_entries
from mathcanvas_lightning.generation.run.module import GenerationModule, ResponseCallback
from mathcanvas_lightning.generation.run.writer import data_of
from mathcanvas_lightning.records.record import RecordInput


class ReasoningFolders(ResponseCallback):
    """Writes the steps and pictures of each answer into a separate folder.

    `<id>/reasoning_result.json` contains the steps in order, `<id>/images/reasoning_image_N.png`
    the drawings, `<id>/ori.json` the record, and `<id>/ori_images/` the record's pictures. A folder
    is renamed into place when it is complete, before the answer is added to the journal. If a
    record has several answers, the later ones get the folders `<id>+2`, `<id>+3`, ... A run that is
    started again with this callback, after it was finished without, writes the folders from the
    drawings in the journal; it loads no model.

    Args:
        folder: Parent folder; with several inputs, each has a subfolder with its name. By default
            a folder beside each output, with the output's name without suffix; if another input or
            other files have this folder already, `<name of the output>.folders`.
        texts_too: Whether to write folders for answers without steps too (backends that return
            only a text).
    """

    keeps_drawings = True

    def __init__(self, folder: str | None = None, *, texts_too: bool = False) -> None:
        self.folder = folder
        self.texts_too = texts_too
        self._parents: dict[str, Path] = {}
        """Label of the input -> folder of its answers."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Chooses the folders, before a model is started.

        Args:
            trainer: The Trainer.
            pl_module: Not used.

        Raises:
            OutputError: If a folder lies inside an input, or has other files.
        """
        inputs = data_of(trainer).inputs
        self._parents = {}
        for source in inputs:
            self._parents[source.label] = self._parent(source, inputs)
        # One choice for all ranks: a later one may find the folders of an earlier one.
        self._parents = trainer.strategy.broadcast(self._parents)
        if trainer.is_global_zero:
            for source in inputs:
                claim_folders(journal_folder(source.output_path), self._parents[source.label])

    def on_responses(
        self,
        trainer: Trainer,
        pl_module: GenerationModule,  # noqa: ARG002
        exchanges: Sequence[Exchange],
    ) -> None:
        """Writes the folders of new answers.

        Args:
            trainer: The Trainer.
            pl_module: Not used.
            exchanges: New responses with their requests.
        """
        data = data_of(trainer)
        inputs = {one.label: one for one in data.inputs}
        for exchange in exchanges:
            if exchange.request is not None and exchange.response.failure is None:
                source = inputs[data.pending[exchange.response.uid].label]
                index = exchange.response.uid.removeprefix(f"{source.label}:")
                base = self._parents[source.label]
                for number, output in enumerate(exchange.response.outputs, start=1):
                    if output.steps or self.texts_too:
                        target = base / folder_name(index, number)
                        steps = output.steps or (output.text,)
                        write_folder(target, index, steps, exchange.request)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Writes the folders of earlier answers whose drawings are in the journal.

        Args:
            trainer: The Trainer.
            pl_module: Not used.
        """
        if trainer.is_global_zero:
            self._write_earlier(data_of(trainer))

    def _write_earlier(self, data: RecordDataModule) -> None:
        """Writes folders that an earlier run without this callback has not written."""
        steps: dict[str, list[list[Part]]] = {}
        with open_entries() as read:
            for uid, entry in data.answered.items():
                label = data.wanted[uid].label
                base = self._parents[label] / folder_name(uid.removeprefix(f"{label}:"), 1)
                if not base.exists():
                    steps[uid] = stored_steps(entry.path.parent, read(entry))
        wanted = {uid: data.wanted[uid] for uid, found in steps.items() if found}
        for request in data.prepared(wanted):
            if isinstance(request, GenerationRequest):
                label = data.wanted[request.uid].label
                index = request.uid.removeprefix(f"{label}:")
                for number, parts in enumerate(steps[request.uid], start=1):
                    target = self._parents[label] / folder_name(index, number)
                    write_folder(target, index, parts, request)

    def _parent(self, source: RecordInput, inputs: Sequence[RecordInput]) -> Path:
        if self.folder is not None:
            parent = local_path(self.folder)
            if len(inputs) > 1:
                parent /= safe_name(source.label)
            if _is_inside_input(parent, inputs):
                raise _taken(parent)
            return parent
        output = source.output_path
        claimed = claimed_folders(journal_folder(output))
        if claimed is not None and claimed.parent == output.parent:
            return claimed
        for parent in (output.with_suffix(""), output.with_name(f"{output.name}.folders")):
            is_free = parent not in self._parents.values() and not _has_other_files(parent, output)
            if is_free and not _is_inside_input(parent, inputs):
                return parent
        raise _taken(parent)


def _is_inside_input(folder: Path, inputs: Sequence[RecordInput]) -> bool:
    real = folder.resolve()
    paths = {local_path(one.path).resolve() for one in inputs}
    return not paths.isdisjoint((real, *real.parents))


def _has_other_files(folder: Path, output: Path) -> bool:
    """Whether something is there that no run with this output has written."""
    return not is_vacant(folder) and not has_answers(journal_folder(output))


def _taken(folder: Path) -> OutputError:
    return OutputError(
        str(folder),
        found="an input, or files of something else",
        wanted="a folder for answers and their drawings",
        remedy="Set folders.init_args.folder to another folder, or folders: null for none.",
    )
