"""ReasoningFolders: a folder an answer, with its drawings, as the public benchmark reads it."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from mathcanvas_lightning.generation.requests import Exchange
from mathcanvas_lightning.generation.run.answer_folders import folder_name, safe_name, write_folder
from mathcanvas_lightning.generation.run.module import GenerationModule, ResponseCallback
from mathcanvas_lightning.generation.run.writer import data_of
from mathcanvas_lightning.records.record import RecordInput


class ReasoningFolders(ResponseCallback):
    """Writes each answer's steps and pictures into a folder of its own.

    `<id>/reasoning_result.json` has the steps in order, `<id>/images/reasoning_image_N.png` the
    drawings, `<id>/ori.json` the record, `<id>/ori_images/` its pictures. A folder appears whole,
    before the answer enters the journal. Of several answers to a record, those after the first
    have folders `<id>+2`, ...

    Args:
        folder: Where the folders go, below the input's name if there are several inputs; by
            default beside each output, in its name without suffix.
        texts_too: Write folders also for answers that are but one text, of backends that tell no
            steps.
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
        """Writes folders.

        Args:
            trainer: The Trainer.
            pl_module: Not used.
            exchanges: What was asked and said.
        """
        data = data_of(trainer)
        inputs = {one.label: one for one in data.inputs}
        for exchange in exchanges:
            if exchange.request is not None and exchange.response.failure is None:
                source = inputs[data.pending[exchange.response.uid].label]
                index = exchange.response.uid.removeprefix(f"{source.label}:")
                base = self._base(source, is_alone=len(inputs) == 1)
                for number, output in enumerate(exchange.response.outputs, start=1):
                    if output.steps or self.texts_too:
                        target = base / folder_name(index, number)
                        write_folder(target, index, output.steps or (output.text,), exchange)

    def _base(self, source: RecordInput, *, is_alone: bool) -> Path:
        if self.folder is None:
            return source.output_path.with_suffix("")
        return Path(self.folder) if is_alone else Path(self.folder, safe_name(source.label))
