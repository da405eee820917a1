"""Answers to the records of one or two files, by a function: what `mathcanvas predict` runs."""

from typing import Any, Literal

from lightning.pytorch import Trainer

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import EchoBackend, GenerationBackend
from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
from mathcanvas_lightning.generation.backends.server.process import ServerConfig
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.batching import FixedSize
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.module import QUIET_TRAINER, GenerationModule
from mathcanvas_lightning.generation.run.monitor import GenerationProgress
from mathcanvas_lightning.generation.run.report import PredictionReport
from mathcanvas_lightning.generation.run.writer import ResponseWriter
from mathcanvas_lightning.records.record import RecordInput

BackendName = Literal["vllm", "server", "echo"]


def generate_responses(
    *,
    model_path: str | None = None,
    model_name: str | None = None,
    tensor_parallel_size: int = 4,
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
) -> PredictionReport | None:
    """Answers the records of a multimodal file, a text-only file, or both.

    Started again after any end, it goes on: records that have an answer are not asked again.

    Args:
        model_path: Folder or name of the model.
        model_name: Its name in the journal and for the server; by default the end of its path, or
            the only model of the server.
        tensor_parallel_size: Cards that share a model.
        max_model_len: Tokens of a prompt and its answer at most.
        temperature: 0 takes the likeliest token each time.
        top_p: Only the likeliest tokens that make up this probability are drawn from.
        max_tokens: Tokens of an answer at most.
        multimodal_input: File of records with pictures (JSON, JSON lines, CSV or Parquet).
        multimodal_output: Where it goes, answered.
        text_only_input: File of records without pictures.
        text_only_output: Where it goes, answered.
        image_base_path: Folder that picture paths start from; the input's folder by default.
        index_field: Field of a record that names it.
        query_field: Field of a record that holds the question.
        image_field: Field of a record that holds its pictures.
        response_field: Field of a record that is given the answer.
        batch_size: Records read at a time.
        rerun: Ask all again.
        system_prompt_file: A text file, or a Python file with the prompt in a variable.
        system_prompt_variable: Name of that variable.
        repetition_penalty: Above 1, tokens seen before become less likely.
        backend: A vLLM engine on this machine, an OpenAI-compatible server, or an echo to try
            things out.
        base_url: Of a running server, such as http://127.0.0.1:8000/v1; without it, one is started
            for the time of the run.

    Returns:
        What became of the run, on rank 0.

    Raises:
        ConfigError: If there is no input, or no model for it.
    """
    given = (
        (True, multimodal_input, multimodal_output),
        (False, text_only_input, text_only_output),
    )
    data = RecordDataModule(
        [
            RecordInput(
                has_images=is_multimodal,
                path=path,
                output=output,
                image_base_path=image_base_path,
                index_field=index_field,
                query_field=query_field,
                image_field=image_field,
                response_field=response_field,
            )
            for is_multimodal, path, output in given
            if path is not None
        ],
        prompt=ChatPrompt(
            system_prompt_file=system_prompt_file, system_prompt_variable=system_prompt_variable
        ),
        batching=FixedSize(batch_size),
        rerun=rerun,
    )
    module = GenerationModule(
        make_backend(
            backend,
            model_path,
            model_name,
            base_url=base_url,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
        ),
        Sampling(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            repetition_penalty=repetition_penalty,
        ),
    )
    writer = ResponseWriter()
    trainer = Trainer(accelerator="cpu", callbacks=[writer, GenerationProgress()], **QUIET_TRAINER)
    trainer.predict(module, datamodule=data, return_predictions=False)
    return writer.report


def make_backend(
    name: BackendName,
    model_path: str | None,
    model_name: str | None,
    *,
    base_url: str | None,
    tensor_parallel_size: int,
    max_model_len: int,
) -> GenerationBackend:
    """Makes a backend by its short name.

    Args:
        name: Which.
        model_path: Folder or name of the model; a running server needs none.
        model_name: What to call it.
        base_url: Of a running server, if any.
        tensor_parallel_size: Cards that share a model.
        max_model_len: Tokens of a prompt and its answer at most.

    Returns:
        The backend, not yet started.

    Raises:
        ConfigError: If a model is needed and none is named.
    """
    if name == "echo":
        return EchoBackend(model_name or "echo")
    if name == "server" and base_url is not None:
        return ServerBackend(base_url=base_url, model_name=model_name)
    if model_path is None:
        raise ConfigError(
            "model_path", found="none", wanted="a model's folder or name", remedy="Name one."
        )
    if name == "vllm":
        return VLLMBackend(
            model_path,
            model_name=model_name,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
        )
    options: dict[str, Any] = {
        "tensor-parallel-size": tensor_parallel_size,
        "max-model-len": max_model_len,
    }
    if model_name is not None:
        options["served-model-name"] = model_name
    return ServerBackend(
        server=ServerConfig(model_path=model_path, options=options), model_name=model_name
    )
