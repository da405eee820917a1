"""`generate_responses`: answers the records of one or two files with one call."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from mathcanvas_lightning.common.exits import interrupts_pass
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import EchoBackend, GenerationBackend
from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
from mathcanvas_lightning.generation.backends.server.process import ServerConfig
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.vllm.backend import TextEngineConfig, VLLMBagelBackend
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.batching import FixedSize
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.journal.existing import ExistingOutput
from mathcanvas_lightning.generation.run.module import QUIET_TRAINER, GenerationModule
from mathcanvas_lightning.generation.run.monitor import GenerationProgress, GenerationSummary
from mathcanvas_lightning.generation.run.provenance import command_of
from mathcanvas_lightning.generation.run.summary import PredictionReport
from mathcanvas_lightning.generation.run.writer import ResponseWriter
from mathcanvas_lightning.records.record import RecordInput
from mathcanvas_lightning.records.survey import OnFault

BackendName = Literal["vllm", "server", "bagel", "vllm_bagel", "echo"]
Options = TypeVar("Options", "DataOptions", "BackendOptions", Sampling)


def generate_responses(
    *,
    model_path: str | None = None,
    model_name: str | None = None,
    tensor_parallel_size: int = 1,
    max_model_len: int = 32768,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 1024,
    multimodal_input: str | None = None,
    multimodal_output: str | None = None,
    text_only_input: str | None = None,
    text_only_output: str | None = None,
    image_base_path: str | None = None,
    index_field: str = "sample_index",
    query_field: str = "query_cot",
    image_field: str = "image",
    response_field: str = "model_answer",
    batch_size: int = 500,
    rerun: bool = False,
    system_prompt_file: str | None = None,
    system_prompt_variable: str | None = None,
    repetition_penalty: float = 1.0,
    backend: BackendName = "vllm",
    base_url: str | None = None,
    on_fault: OnFault = "stop",
    existing_output: ExistingOutput = "refuse",
    allow_any_path: bool = False,
) -> PredictionReport | None:
    """Answers the records of one or two files; a run that was interrupted is resumed.

    Args:
        model_path: Folder or hub name of the model.
        model_name: Name in the journal and for the server; default: end of model_path.
        tensor_parallel_size: Number of GPUs that share the model.
        max_model_len: Maximum length of a prompt with its answer, in tokens.
        temperature: Sampling temperature; 0 always takes the most likely token.
        top_p: Nucleus sampling: sample from the most likely tokens with this total probability.
        max_tokens: Maximum length of an answer, in tokens.
        multimodal_input: File of records with pictures (JSON, JSON lines, CSV or Parquet).
        multimodal_output: Output file for multimodal_input.
        text_only_input: File of records without pictures.
        text_only_output: Output file for text_only_input.
        image_base_path: Folder for relative picture paths; default: the input's folder.
        index_field: Field with the id of a record.
        query_field: Field with the question.
        image_field: Field with the pictures.
        response_field: Field that receives the answer.
        batch_size: Number of records that are read at a time.
        rerun: Answer all records again; the same command resumes it if it is interrupted.
        system_prompt_file: Text file, or Python file with the system prompt in a variable.
        system_prompt_variable: Name of that variable.
        repetition_penalty: Above 1, tokens that occurred before become less likely.
        backend: "vllm", "server" (OpenAI-compatible), "bagel", "vllm_bagel" or "echo" (dry run).
        base_url: URL of a running server (.../v1); default: start one for this run.
        on_fault: Records with faults: "stop" before the start, or "skip" them with the reason.
        existing_output: Output without journal: "refuse" it, "seed" with its answers, "replace" it.
        allow_any_path: Read pictures outside image_base_path too, and URLs other than http(s).
    """
    return _run(locals())


def _run(options: Mapping[str, Any]) -> PredictionReport | None:
    """Runs with the parameters of `generate_responses`; returns the counts on rank 0."""
    data = _select(DataOptions, options).make_data()
    backend = _select(BackendOptions, options).make_backend()
    draws = isinstance(backend, BagelBackend)  # in this process, on a GPU if there is one
    module = GenerationModule(backend, _select(Sampling, options))
    command = command_of("generate-response", generate_responses, options)
    return _predict(module, data, "auto" if draws else "cpu", command)


def _select(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """Builds a dataclass from the options that are its fields."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in options.items() if name in names})


def _predict(
    module: GenerationModule, data: RecordDataModule, accelerator: str, command: str
) -> PredictionReport | None:
    writer = ResponseWriter()
    writer.command = command
    callbacks: list[Callback] = [writer, GenerationProgress(), GenerationSummary()]
    trainer = Trainer(accelerator=accelerator, callbacks=callbacks, **QUIET_TRAINER)
    with interrupts_pass():
        trainer.predict(module, datamodule=data, return_predictions=False)
    return writer.report


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Options of `generate_responses` about inputs, outputs and prompts, documented there."""

    multimodal_input: str | None
    multimodal_output: str | None
    text_only_input: str | None
    text_only_output: str | None
    image_base_path: str | None
    index_field: str
    query_field: str
    image_field: str
    response_field: str
    batch_size: int
    rerun: bool
    system_prompt_file: str | None
    system_prompt_variable: str | None
    on_fault: OnFault
    existing_output: ExistingOutput
    allow_any_path: bool

    def make_data(self) -> RecordDataModule:
        """Builds the data module.

        Raises:
            ConfigError: If there is no input, or the system prompt cannot be read.
        """
        inputs = [
            self._record_input(self.multimodal_input, self.multimodal_output, has_images=True),
            self._record_input(self.text_only_input, self.text_only_output, has_images=False),
        ]
        return RecordDataModule(
            [one for one in inputs if one is not None],
            prompt=ChatPrompt(
                system_prompt_file=self.system_prompt_file,
                system_prompt_variable=self.system_prompt_variable,
            ),
            batching=FixedSize(self.batch_size),
            rerun=self.rerun,
            on_fault=self.on_fault,
            existing_output=self.existing_output,
        )

    def _record_input(
        self, path: str | None, output: str | None, *, has_images: bool
    ) -> RecordInput | None:
        if path is None:
            return None
        return RecordInput(
            has_images=has_images,
            path=path,
            output=output,
            image_base_path=self.image_base_path,
            allow_any_path=self.allow_any_path,
            index_field=self.index_field,
            query_field=self.query_field,
            image_field=self.image_field,
            response_field=self.response_field,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """Options of `generate_responses` about the model, documented there."""

    backend: BackendName
    model_path: str | None
    model_name: str | None
    base_url: str | None
    tensor_parallel_size: int
    max_model_len: int

    def make_backend(self) -> GenerationBackend:
        """Builds the backend, without starting it.

        Raises:
            ConfigError: If the backend needs a model and none is given.
        """
        if self.backend == "echo":
            return EchoBackend(self.model_name or "echo")
        if self.backend == "server" and self.base_url is not None:
            return ServerBackend(base_url=self.base_url, model_name=self.model_name)
        if self.model_path is None:
            raise ConfigError(
                "model_path", found="none", wanted="a model's folder or name", remedy="Set it."
            )
        if self.backend == "vllm":
            return VLLMBackend(
                self.model_path,
                model_name=self.model_name,
                tensor_parallel_size=self.tensor_parallel_size,
                max_model_len=self.max_model_len,
            )
        if self.backend in ("bagel", "vllm_bagel"):
            return self._make_bagel(self.model_path)
        options: dict[str, Any] = {
            "tensor-parallel-size": self.tensor_parallel_size,
            "max-model-len": self.max_model_len,
        }
        if self.model_name is not None:
            options["served-model-name"] = self.model_name
        return ServerBackend(
            server=ServerConfig(model_path=self.model_path, options=options),
            model_name=self.model_name,
        )

    def _make_bagel(self, checkpoint: str) -> GenerationBackend:
        name, longest = self.model_name, self.max_model_len
        if self.backend == "bagel":
            return BagelBackend(checkpoint, model_name=name, max_context_tokens=longest)
        engine = TextEngineConfig(tensor_parallel_size=self.tensor_parallel_size)
        return VLLMBagelBackend(
            checkpoint, model_name=name, engine=engine, max_context_tokens=longest
        )
