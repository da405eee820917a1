"""The command line `mathcanvas COMMAND`; the scripts in `tools/` run the same commands."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console

from mathcanvas_lightning.cli import show
from mathcanvas_lightning.common.paths import import_from_here
from mathcanvas_lightning.errors import MathCanvasError

FAILED, SIGNALS, INTERRUPTED = 1, 128, 130
"""Exit statuses; a signal gives 128 plus its number."""
_INTERRUPTION = "interrupted; finished work is kept: run the same command again to resume"
TRAINER_COMMANDS = {
    "fit": "Fine-tunes BAGEL: --config A.yaml --config B.yaml --key value.",
    "validate": "Validates a network on validation sets; takes the options of fit.",
    "predict": "Answers records with a model: --config A.yaml --config B.yaml --key value.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A function of the package as a command; signature and docstring define the options."""

    function: str
    """Path below the package, as module:function; imported only to run the command."""
    summary: str
    """First line of the function's docstring, so that listing commands needs no import."""
    example: str
    """Options of an example, for --help."""
    show: Callable[[Any, Console], int]
    """Prints the function's result and returns the exit status."""
    positional: frozenset[str] = frozenset()
    """Parameters that are positional arguments."""
    lists: frozenset[str] = frozenset()
    """Parameters that take any number of values."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the command that differ from those of the function."""


COMMANDS = {
    "convert": Command(
        function="conversion.convert:convert_cot",
        summary="Converts chain-of-thought data with images into interleaved Parquet shards.",
        example="--input data/enhanced_cot_cleaned.json --output shards --split train=0.9,test=0.1",
        show=show.conversion,
    ),
    "inspect": Command(
        function="inspection.shards:inspect_shards",
        summary="Inspects interleaved shards: counts, columns, row groups, images, texts.",
        example="shards --rows 5 --html shards.html --validate",
        show=show.shards,
        positional=frozenset({"path"}),
    ),
    "generate-blockmoving": Command(
        function="blockmoving.generate:generate_blockmoving",
        summary="Generates a BlockMoving data set: simulated puzzles with pictures and chains of "
        "thought.",
        example="--output data --num_tasks 200 --seed 0 --level 1 --part train",
        show=show.blockmoving,
    ),
    "index": Command(
        function="data.index.build:index_shards",
        summary="Indexes shards for training; reads only new and changed shards.",
        example="shards --tokenizer BAGEL-7B-MoT",
        show=show.indexes,
        positional=frozenset({"paths"}),
        lists=frozenset({"paths"}),
    ),
    "inspect-batch": Command(
        function="inspection.batch:inspect_batch",
        summary="Shows one pack of a training run: blocks, losses, positions, attention mask.",
        example="--config configs/fit/demo_cpu.yaml --step 3 --png pack.png",
        show=show.batch,
        lists=frozenset({"config"}),
    ),
    "plan-memory": Command(
        function="training.memory.plan:plan_memory",
        summary="Computes the memory that a run needs on each GPU and host, without loading "
        "anything.",
        example="--config configs/fit/stage2.yaml configs/trainer/fsdp_8gpu.yaml --gpus 8 "
        "--gpu_memory_gb 80",
        show=show.memory_plan,
        lists=frozenset({"config"}),
    ),
    "make-bagel": Command(
        function="demo.new_bagel:make_bagel",
        summary="Makes a small BAGEL checkpoint, untrained or pretrained, with tokenizer and "
        "autoencoder.",
        example="--output tiny_bagel --preset tiny --seed 0 --corpus texts.txt more.txt",
        show=show.new_bagel,
        lists=frozenset({"corpus"}),
    ),
    "train-vae": Command(
        function="training.autoencoder:train_vae",
        summary="Trains an image autoencoder on pictures, for drawings of small models or of one's "
        "own data.",
        example="--pictures data/pictures --output autoencoder --num_steps 1200",
        show=show.autoencoder,
    ),
    "make-demo-model": Command(
        function="demo.language_model:make_demo_model",
        summary="Makes a folder with SmolLM2-135M-Instruct, a small chat model.",
        example="--output demo/smollm2",
        show=show.demo_model,
    ),
    "export-checkpoint": Command(
        function="training.checkpoint.export:export_checkpoint",
        summary="Exports a run's checkpoint as a directory for this library, the reference and "
        "vLLM.",
        example="run/checkpoints/last.ckpt --output exported --dtype bf16",
        show=show.export,
        positional=frozenset({"checkpoint"}),
    ),
    "generate-response": Command(
        function="generation.api:generate_responses",
        summary="Answers the records of one or two files; a run that was interrupted is resumed.",
        example="--backend vllm --model_path SmolLM2 --tensor_parallel_size 1 --max_model_len 2048"
        " --text_only_input questions.jsonl --text_only_output answers.jsonl",
        show=show.predictions,
        defaults={"tensor_parallel_size": 4},
    ),
    "generate-handler": Command(
        function="conversion.handler:generate_dataset_handler",
        summary="Writes a small, working, commented source format and its test.",
        example="--name my_data --output my_data.py",
        show=show.handler,
    ),
    "score": Command(
        function="evaluation.scoring:score_responses",
        summary="Scores the answers of a model against reference answers.",
        example="--input answers.jsonl --by subject --by level",
        show=show.scores,
        lists=frozenset({"by"}),
    ),
    "compare": Command(
        function="evaluation.paired:compare_scores",
        summary="Compares two models by their scores of the same records.",
        example="with.jsonl_scores.json without.jsonl_scores.json",
        show=show.difference,
        positional=frozenset({"first", "second"}),
    ),
    "report": Command(
        function="evaluation.report.page:write_report",
        summary="Shows answered records on one HTML page: questions, steps, drawings, verdicts.",
        example="--input answers.jsonl --only wrong",
        show=show.report,
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs `mathcanvas COMMAND ...`.

    Args:
        args: Arguments of the command line; by default those of this process.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in TRAINER_COMMANDS:
        return run_trainer(words)
    if not words or words[0] not in COMMANDS:
        is_help = not words or words[0] in ("-h", "--help")
        console = Console(stderr=not is_help)
        if not is_help:
            console.print(f"error: unknown command {words[0]!r}", markup=False)
        summaries = {name: command.summary for name, command in COMMANDS.items()}
        show.commands(summaries | TRAINER_COMMANDS, console)
        return 0 if is_help else 2
    return run_command(words[0], words[1:], prog=f"mathcanvas {words[0]}")


def run_trainer(words: Sequence[str]) -> int:
    """Runs `fit`, `validate` or `predict`.

    Args:
        words: The command and its options.

    Returns:
        The exit status.
    """
    import_from_here(words)
    # Importing either takes seconds.
    if words[0] == "predict":
        from mathcanvas_lightning.cli.predict import run_predict

        return guarded(lambda: show.predictions(run_predict(words), Console()))
    from mathcanvas_lightning.cli.fit import run_cli

    return guarded(lambda: run_cli(words))


def guarded(work: Callable[[], int | None]) -> int:
    """Runs `work`; turns errors into a line on standard error and an exit status."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        return work() or 0
    except (MathCanvasError, OSError) as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        return FAILED
    except KeyboardInterrupt:
        errors.print(_INTERRUPTION)
        return INTERRUPTED
    except SystemExit as exit_:
        if not isinstance(exit_.code, int) or exit_.code <= SIGNALS:
            raise
        errors.print(_INTERRUPTION)
        return exit_.code
    except Exception as error:
        if (ours := _cause(error)) is None:
            raise
        errors.print(f"error: {ours}", markup=False, highlight=False)
        return FAILED


def _cause(error: BaseException) -> MathCanvasError | None:
    """Finds our error in the chain of causes; argument parsers wrap errors of constructors."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, MathCanvasError):
        found = found.__cause__ or found.__context__
    return found


def run_command(name: str, args: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Runs one command.

    Args:
        name: Name of the command.
        args: Options of the command; by default those of this process.
        prog: Name of the program in the help text.

    Returns:
        The exit status: 0, 1 if it failed, 130 if it was interrupted.
    """
    command = COMMANDS[name]
    function = _load(command)
    options = _parser(command, function, prog).parse_args(args)
    names = signature(function).parameters
    given = {k: v for k, v in options.as_dict().items() if k in names}
    return guarded(lambda: command.show(function(**given), Console()))


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the example."""


def _parser(command: Command, function: Callable[..., Any], prog: str | None) -> ArgumentParser:
    doc = docstring_parser.parse(function.__doc__ or "")
    help_of = {parameter.arg_name: parameter.description for parameter in doc.params}
    parser = ArgumentParser(
        prog=prog, description=_description(doc), allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.epilog = f"example:\n  {parser.prog} {command.example}"
    parameters = signature(function).parameters
    if "config" not in parameters:
        parser.add_argument(
            "--config", action="config", help="YAML file with any of these options."
        )
    flags = {p.name for p in parameters.values() if p.annotation is bool and p.default is False}
    for name in sorted(command.positional):
        nargs = "+" if name in command.lists else None
        parser.add_argument(name, type=str, help=help_of[name], nargs=nargs)
    skip: set[str | int] = {*flags, *command.positional, *command.lists, "progress"}
    parser.add_function_arguments(function, as_group=False, skip=skip)
    for name in sorted(command.lists - command.positional):
        parser.add_argument(
            f"--{name}", nargs="*", action="extend", type=str, default=[], help=help_of[name]
        )
    for name in sorted(flags):
        parser.add_argument(f"--{name}", action="store_true", help=help_of[name])
    parser.set_defaults(dict(command.defaults))
    return parser


def _description(doc: docstring_parser.Docstring) -> str:
    return "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)


def _load(command: Command) -> Callable[..., Any]:
    module, name = command.function.split(":")
    function: Callable[..., Any] = getattr(import_module(f"mathcanvas_lightning.{module}"), name)
    return function
