"""The command line: `mathcanvas COMMAND`; the files of `tools/` run the same commands."""

import argparse
import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console

from mathcanvas_lightning.cli import show as display
from mathcanvas_lightning.common.paths import import_from_here
from mathcanvas_lightning.errors import MathCanvasError

FAILED, SIGNALS, INTERRUPTED = 1, 128, 130
"""Exit statuses; signals add their number to 128."""
_INTERRUPTION = "interrupted; what is finished stays: run the same command again to go on"
TRAINER_COMMANDS = {
    "fit": "Fine-tunes BAGEL: --config A.yaml --config B.yaml --key value.",
    "validate": "Validates a network on validation sets; options as of fit.",
    "predict": "Answers records with a model: --config A.yaml --config B.yaml --key value.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A function of the package as a command; its signature and docstring are the options."""

    function: str
    """Where it is: module:function, below the package; imported only when it is run."""
    example: str
    """Shown by --help, after the program's name."""
    show: Callable[[Any, Console], int]
    """Prints what the function returns, and gives the exit status."""
    positional: frozenset[str] = frozenset()
    """Parameters given without their name."""
    lists: frozenset[str] = frozenset()
    """Parameters that take any number of words."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the command that differ from those of the function."""


COMMANDS = {
    "convert": Command(
        function="conversion.convert:convert_cot",
        example="--input data/enhanced_cot_cleaned.json --output shards --split train=0.9,test=0.1",
        show=display.show_conversion,
    ),
    "inspect": Command(
        function="inspection.shards:inspect_shards",
        example="shards --rows 5 --html shards.html --validate",
        show=display.show_shards,
        positional=frozenset({"path"}),
    ),
    "generate-blockmoving": Command(
        function="blockmoving.generate:generate_blockmoving",
        example="--output data --num_tasks 200 --seed 0",
        show=display.show_blockmoving,
    ),
    "index": Command(
        function="data.index.build:index_shards",
        example="shards --tokenizer BAGEL-7B-MoT",
        show=display.show_indexes,
        positional=frozenset({"common.paths"}),
        lists=frozenset({"common.paths"}),
    ),
    "inspect-batch": Command(
        function="inspection.batch:inspect_batch",
        example="--config configs/fit/demo_cpu.yaml --step 3 --png pack.png",
        show=display.show_batch,
        lists=frozenset({"config"}),
    ),
    "make-bagel": Command(
        function="demo.new_bagel:make_bagel",
        example="--output tiny_bagel --preset tiny --seed 0 --corpus texts.txt more.txt",
        show=display.show_fresh_model,
        lists=frozenset({"corpus"}),
    ),
    "make-demo-model": Command(
        function="demo.language_model:make_demo_model",
        example="--output demo/smollm2",
        show=display.show_demo_model,
    ),
    "export-checkpoint": Command(
        function="training.checkpoint.export:export_checkpoint",
        example="run/checkpoints/last.ckpt --output exported --dtype bf16",
        show=display.show_export,
        positional=frozenset({"checkpoint"}),
    ),
    "generate-response": Command(
        function="generation.api:generate_responses",
        example="--backend vllm --model_path SmolLM2 --tensor_parallel_size 1 --max_model_len 2048"
        " --text_only_input questions.jsonl --text_only_output answers.jsonl",
        show=display.show_predictions,
        defaults={"tensor_parallel_size": 4},
    ),
    "generate-handler": Command(
        function="conversion.handler:generate_dataset_handler",
        example="--name my_data --output my_data.py",
        show=display.show_handler,
    ),
    "score": Command(
        function="evaluation.scoring:score_responses",
        example="--input answers.jsonl --by subject --by level",
        show=display.show_scores,
        lists=frozenset({"by"}),
    ),
    "report": Command(
        function="evaluation.report.page:write_report",
        example="--input answers.jsonl --only wrong",
        show=display.show_report,
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs `mathcanvas COMMAND ...`.

    Args:
        args: Words of the command line, those of this process by default.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in TRAINER_COMMANDS:
        return run_trainer(words)
    if not words or words[0] not in COMMANDS:
        asked = not words or words[0] in ("-h", "--help")
        console = Console(stderr=not asked)
        if not asked:
            console.print(f"error: unknown command {words[0]!r}", markup=False)
        summaries = {name: _summary(name) for name in COMMANDS}
        display.show_commands(summaries | TRAINER_COMMANDS, console)
        return 0 if asked else 2
    return run_command(words[0], words[1:], prog=f"mathcanvas {words[0]}")


def run_trainer(words: Sequence[str]) -> int:
    """Runs a command of the Trainer.

    Args:
        words: The command and its options.

    Returns:
        The exit status.
    """
    import_from_here()
    # Both take seconds to import.
    if words[0] == "predict":
        from mathcanvas_lightning.cli.predict import run_predict

        return guarded(lambda: display.show_predictions(run_predict(words), Console()))
    from mathcanvas_lightning.cli.fit import run_cli

    return guarded(lambda: run_cli(words))


def guarded(work: Callable[[], int | None]) -> int:
    """Does some work; its errors become a line on standard error and an exit status."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        return work() or 0
    except (MathCanvasError, OSError) as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        return FAILED
    except KeyboardInterrupt:
        errors.print(_INTERRUPTION)
        return INTERRUPTED
    except SystemExit as ended:
        if not isinstance(ended.code, int) or ended.code <= SIGNALS:
            raise
        errors.print(_INTERRUPTION)
        return ended.code
    except Exception as error:
        if (ours := _cause(error)) is None:
            raise
        errors.print(f"error: {ours}", markup=False, highlight=False)
        return FAILED


def _cause(error: BaseException) -> MathCanvasError | None:
    """The error of ours behind another: argument parsers wrap what constructors raise."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, MathCanvasError):
        found = found.__cause__ or found.__context__
    return found


def run_command(name: str, args: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Runs one command.

    Args:
        name: Its name.
        args: Its options, those of this process by default.
        prog: How the program is called in its help.

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
    """Keeps the lines of the example."""


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
    skip: set[str | int] = {*flags, *command.positional, *command.lists, "common.progress"}
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


def _summary(name: str) -> str:
    """First line of a command's docstring, read off the source: importing may take seconds."""
    module, function = COMMANDS[name].function.split(":")
    spec = find_spec(f"mathcanvas_lightning.{module}")
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise AssertionError(f"no function {function} in {spec.origin}")
