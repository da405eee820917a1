"""ReasoningFolders: writes one folder per answer, in the format of the public benchmark."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.generation.requests import Exchange
from mathcanvas_lightning.generation.run.answer_folders import folder_name, safe_name, write_folder
from mathcanvas_lightning.generation.run.module import GenerationModule, ResponseCallback
from mathcanvas_lightning.generation.run.writer import data_of
from mathcanvas_lightning.records.record import RecordInput


class ReasoningFolders(ResponseCallback):
    """Writes the steps and pictures of each answer into a separate folder.

    `<id>/reasoning_result.json` contains the steps in order, `<id>/images/reasoning_image_N.png`
    the drawings, `<id>/ori.json` the record, and `<id>/ori_images/` the record's pictures. A folder
    is renamed into place when it is complete, before the answer is added to the journal. If a
    record has several answers, the later ones get the folders `<id>+2`, `<id>+3`, ...

    Args:
        folder: Parent folder; with several inputs, each has a subfolder with its name. By default
            a folder beside each output, with the output's name without suffix.
        texts_too: Whether to write folders for answers without steps too (backends that return
            only a text).
    """

    def __init__(self, folder: str | None = None, *, texts_too: bool = False) -> None:
        self.folder = folder
        self.texts_too = texts_too

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
                base = self._base(source, is_only_input=len(inputs) == 1)
                for number, output in enumerate(exchange.response.outputs, start=1):
                    if output.steps or self.texts_too:
                        target = base / folder_name(index, number)
                        write_folder(target, index, output.steps or (output.text,), exchange)

    def _base(self, source: RecordInput, *, is_only_input: bool) -> Path:
        if self.folder is None:
            return source.output_path.with_suffix("")
        return (
            local_path(self.folder)
            if is_only_input
            else (local_path(self.folder) / safe_name(source.label))
        )
