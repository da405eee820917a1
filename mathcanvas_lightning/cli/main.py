"""The command line `mathcanvas COMMAND`; the scripts in `tools/` run the same commands."""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

import docstring_parser
from rich.console import Console

from mathcanvas_lightning.cli import show
from mathcanvas_lightning.cli.command_parser import WRONG_OPTION, CommandParser, HelpFormatter
from mathcanvas_lightning.cli.completion import completion_script
from mathcanvas_lightning.cli.help import (
    ALIASES,
    COMMON_OPTIONS,
    is_help,
    missing_settings,
    print_commands,
    print_trainer_help,
    trainer_options,
    version,
)
from mathcanvas_lightning.cli.show_comparison import comparison
from mathcanvas_lightning.common.exits import FAILED, SIGNALS, exit_on_signals, interrupts_pass
from mathcanvas_lightning.common.keys import did_you_mean
from mathcanvas_lightning.common.logs import set_up_logging, show_lightning
from mathcanvas_lightning.common.parallel import signals_postponed
from mathcanvas_lightning.common.paths import import_from_here
from mathcanvas_lightning.errors import MathCanvasError, cause_of_kind

INTERRUPTED = SIGNALS + signal.SIGINT
"""Exit status after Ctrl-C."""
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
    variants: Mapping[str, str] = field(default_factory=dict)
    """Option -> function that runs instead where it is given, with this and its other options."""


COMMANDS = {
    "convert": Command(
        function="conversion.convert:convert_cot",
        summary="Converts chain-of-thought data with images into interleaved Parquet shards.",
        example="--input data/enhanced_cot_cleaned.json --output shards --split train=0.9,test=0.1",
        show=show.conversion,
        variants={"--merge": "conversion.parts.merge:merge_conversion"},
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
        summary="Trains an image autoencoder on pictures, for drawings of small models or of your "
        "data.",
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
    "curves": Command(
        function="training.run.curves:draw_curves",
        summary="Draws the curves of a run, or of several runs over each other.",
        example="runs/lr1e-4 runs/lr3e-4 --output curves.png",
        show=show.curves,
        positional=frozenset({"runs"}),
        lists=frozenset({"runs"}),
    ),
    "generate-response": Command(
        function="generation.api:generate_responses",
        summary="Answers the records of one or two files; a run that was interrupted is resumed.",
        example="--backend vllm --model_path SmolLM2 --tensor_parallel_size 1 --max_model_len 2048"
        " --text_only_input questions.jsonl --text_only_output answers.jsonl",
        show=show.predictions,
        defaults={"tensor_parallel_size": 4},
    ),
    "chat": Command(
        function="cli.chat:chat",
        summary="Talks with a model: a page on this machine, or the terminal.",
        example="--run demo/run",
        show=show.nothing,
    ),
    "generate-handler": Command(
        function="conversion.handler:generate_dataset_handler",
        summary="Writes a small, working source format and its test, or the YAML of columns.",
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
        function="evaluation.leaderboard.command:compare_models",
        summary="Compares models on data sets by their scores of the same records.",
        example="a.jsonl_scores.json b.jsonl_scores.json --format markdown --output table.md",
        show=comparison,
        positional=frozenset({"files"}),
        lists=frozenset({"files"}),
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
    words = set_verbosity(list(sys.argv[1:] if args is None else args))
    if not words or words[0] in ("-h", "--help", "help"):
        words = [ALIASES.get(words[1], words[1]), "--help"] if words[1:] else []
    name = ALIASES.get(words[0], words[0]) if words else None
    if name in COMMANDS:
        return run_command(name, words[1:], prog=f"mathcanvas {name}")
    run = _run_trainer if name in TRAINER_COMMANDS else _top_level
    return guarded(lambda: run(words))


def _top_level(words: Sequence[str]) -> int:
    """Answers words that name no command: the list of commands, the version, an error."""
    summaries = {name: command.summary for name, command in COMMANDS.items()} | TRAINER_COMMANDS
    if not words:
        print_commands(summaries, Console())
        return 0
    if words[0] in ("--version", "-V", "version"):
        Console().print(version(), highlight=False)
        return 0
    if words[0].startswith("--print_shtab"):
        options = {name: partial(_options, name) for name in COMMANDS}
        options |= {name: partial(trainer_options, name) for name in TRAINER_COMMANDS}
        script = completion_script(words, options)
        Console(soft_wrap=True).print(script, markup=False, highlight=False)
        return 0
    hint = did_you_mean(words[0], [*summaries, *ALIASES])
    Console(stderr=True, soft_wrap=True).print(
        f"error: unknown command {words[0]!r}. {hint}", markup=False, highlight=False
    )
    return WRONG_OPTION


def set_verbosity(words: Sequence[str]) -> list[str]:
    """Sets up the messages of a command, and takes out `--verbose` and `--quiet`.

    Args:
        words: Words of the command line.

    Returns:
        The other words. `--verbose true` stays: it is an option of `validate`.
    """
    verbosity, rest = 0, []
    for number, word in enumerate(words):
        has_value = words[number + 1 : number + 2] in (["true"], ["false"])
        if word == "--quiet" or (word == "--verbose" and not has_value):
            verbosity = -1 if word == "--quiet" else 1
        else:
            rest.append(word)
    set_up_logging(verbosity)
    return rest


def _run_trainer(words: Sequence[str]) -> int:
    """Runs `fit`, `validate` or `predict`; the first word is the command."""
    console = Console(stderr=not is_help(words), soft_wrap=not is_help(words))
    if is_help(words):
        print_trainer_help(words[0], TRAINER_COMMANDS[words[0]], console)
        return 0
    if len(words) == 1:
        console.print(f"error: {missing_settings(words[0])}", markup=False, highlight=False)
        return WRONG_OPTION
    words = ["--help" if word == "--full_help" else word for word in words]
    import_from_here(words)
    # Importing either takes seconds.
    if words[0] == "predict":
        from mathcanvas_lightning.cli.predict import run_predict

        show_lightning()
        return show.predictions(run_predict(words), Console())
    from mathcanvas_lightning.cli.fit import run_cli

    show_lightning()
    run_cli(words)
    return 0


def guarded(work: Callable[[], int | None]) -> int:
    """Runs `work`; turns errors into a line on standard error and an exit status."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        with interrupts_pass(), exit_on_signals(signal.SIGTERM, signal.SIGHUP):
            return work() or 0
    except (KeyboardInterrupt, SystemExit) as end:
        status = INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code
        if not isinstance(status, int) or status <= SIGNALS:
            raise
        with suppress(OSError), signals_postponed():  # the terminal may be closed
            errors.print(_INTERRUPTION)
        return status
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has ended, such as `head`
            errors.on_broken_pipe()
        shown = error if isinstance(error, OSError) else cause_of_kind(error, MathCanvasError)
        if shown is None:
            raise
        errors.print(f"error: {shown}", markup=False, highlight=False)
        return FAILED


def run_command(name: str, args: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Runs one command.

    Args:
        name: Name of the command.
        args: Options of the command; by default those of this process.
        prog: Name of the program in the help text.

    Returns:
        The exit status: 0, 1 if it failed, 130 if it was interrupted.
    """
    words = set_verbosity(sys.argv[1:]) if args is None else args
    return guarded(lambda: _run(COMMANDS[name], words, prog))


def _run(command: Command, words: Sequence[str], prog: str | None) -> int:
    command = _variant(command, words)
    function = _load(command)
    show_lightning()
    options = _parser(command, function, prog).parse_args(words)
    names = signature(function).parameters
    given = {k: v for k, v in options.as_dict().items() if k in names}
    return command.show(function(**given), Console())


def _options(name: str) -> list[str]:
    """The options of a command."""
    parser = _parser(COMMANDS[name], _load(COMMANDS[name]), None)
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    return [*options, *COMMANDS[name].variants]


def _variant(command: Command, words: Sequence[str]) -> Command:
    """The command with the function that its options ask for."""
    given = {word.partition("=")[0] for word in words}
    found = next((f for option, f in command.variants.items() if option in given), None)
    return command if found is None else replace(command, function=found)


def _parser(command: Command, function: Callable[..., Any], prog: str | None) -> CommandParser:
    doc = docstring_parser.parse(function.__doc__ or "")
    help_of = {parameter.arg_name: parameter.description for parameter in doc.params}
    parser = CommandParser(
        prog=prog, description=_description(doc), allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.epilog = f"{COMMON_OPTIONS}\n\nexample:\n  {parser.prog} {command.example}"
    parameters = signature(function).parameters
    if "config" not in parameters:
        parser.add_argument("--config", action="config", help="YAML file with these options.")
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
