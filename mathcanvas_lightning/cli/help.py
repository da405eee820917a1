"""Help texts: the list of commands, the version, one screen for each trainer command."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mathcanvas_lightning import __version__

STAGES: Mapping[str, tuple[str, ...]] = {
    "Data": ("generate-blockmoving", "generate-handler", "convert", "inspect", "index"),
    "Model": ("make-bagel", "make-demo-model", "train-vae"),
    "Train": ("inspect-batch", "plan-memory", "fit", "validate", "curves", "export-checkpoint"),
    "Answer and score": ("chat", "predict", "generate-response", "score", "compare", "report"),
}
"""Stage -> its commands, in the order of use."""
ALIASES: Mapping[str, str] = {
    "build-index": "index",
    "compare-scores": "compare",
    "convert-cot-to-parquet": "convert",
    "export": "export-checkpoint",
    "generate-dataset-handler": "generate-handler",
    "inspect-shards": "inspect",
    "make-tiny-bagel": "make-bagel",
    "score-responses": "score",
    "show-answers": "report",
}
"""Further name of a command -> the command; the files of `tools/` have these names."""

_RUN_OPTIONS = {
    "fit": (
        ("--config FILE", "Settings; of several files, later ones override earlier ones."),
        ("--name NAME", "Everything is written to runs/NAME. The same command resumes it."),
        ("--data.KEY VALUE", "What to train on; mathcanvas fit --data.help lists the keys."),
        ("--model.KEY VALUE", "Weights, losses, rates; mathcanvas fit --model.help lists them."),
        ("--trainer.KEY VALUE", "Steps, devices, callbacks; --full_help lists them."),
        ("--auto_resume false", "Start over; what is there is moved to earlier_1."),
        ("--ckpt_path FILE", "Resume from this checkpoint."),
        ("--debug_batches N", "Show the first N packs before training."),
        ("--print_config", "Print the complete settings, and stop."),
    ),
    "validate": (
        ("--run RUN", "A run: its settings and its newest checkpoint."),
        ("--config FILE", "Settings, as for fit; they override those of the run."),
        ("--ckpt_path FILE", "Validate this checkpoint."),
    ),
    "predict": (
        ("--config FILE", "Settings; of several files, later ones override earlier ones."),
        ("--run RUN", "A run of fit: its newest checkpoint and image sizes."),
        ("--input FILE", "Questions: JSON, JSON lines, CSV, Parquet, or shards."),
        ("--output FILE", "Answers; with --run by default RUN/answers/INPUT.jsonl."),
        ("--data.KEY VALUE", "Questions, prompts; with --data.help CLASS its keys."),
        ("--model.KEY VALUE", "Backend, sampling; with --model.help CLASS its keys."),
        ("--trainer.KEY VALUE", "Devices; --full_help lists the keys."),
        ("--print_config", "Print the complete settings, and stop."),
    ),
}
_COMMON = (
    ("--full_help", "All options, some hundred lines."),
    ("--quiet", "Only warnings, errors and results."),
    ("--verbose", "Lightning's messages too."),
)
COMMON_OPTIONS = "--quiet shows only warnings, errors and results; --verbose shows more."
"""What the help of each command says of the options that all commands take."""
_EXAMPLES = {
    "fit": "mathcanvas fit --config configs/fit/demo_cpu.yaml --name lr1e-3 "
    "--model.init_args.optimizer.lr 1e-3",
    "validate": "mathcanvas validate --run runs/lr1e-3",
    "predict": "mathcanvas predict --run runs/lr1e-3 --input questions.jsonl",
}


def print_commands(summaries: Mapping[str, str], console: Console) -> None:
    """Prints the commands by stage, in the order of use.

    Args:
        summaries: Command -> its summary.
        console: Where to print.
    """
    table = Table("command", "", title="mathcanvas COMMAND --help lists the options")
    table.title_justify = "left"
    listed = {name for names in STAGES.values() for name in names}
    stages = {**STAGES, "Further": tuple(name for name in summaries if name not in listed)}
    for names in stages.values():
        known = [name for name in names if name in summaries]
        for name in known:
            table.add_row(name, summaries[name], end_section=name == known[-1])
    console.print(table)


def print_trainer_help(command: str, summary: str, console: Console) -> None:
    """Prints the most used options of `fit`, `validate` or `predict` on one screen."""
    console.print(f"usage: mathcanvas {command} [options]\n\n{summary}\n", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for option, text in (*_RUN_OPTIONS[command], *_COMMON):
        table.add_row(option, text)
    console.print(table)
    console.print(f"\nexample:\n  {_EXAMPLES[command]}", markup=False, soft_wrap=True)
    if found := shipped_configs(command):
        console.print(f"shipped settings:\n  {' '.join(found)}", markup=False, soft_wrap=True)


def trainer_options(command: str) -> list[str]:
    """The options on the screen of a trainer command, without those that are a group."""
    options = (option.split()[0] for option, _ in (*_RUN_OPTIONS[command], *_COMMON))
    return [option for option in options if not option.endswith(".KEY")]


def shipped_configs(command: str) -> list[str]:
    """Settings for a command in the folder `configs` of the working folder."""
    pattern = "predict*.yaml" if command == "predict" else "fit/*.yaml"
    return sorted(str(path) for path in Path("configs").glob(pattern))


def missing_settings(command: str) -> str:
    """The error for a trainer command without settings."""
    found = shipped_configs(command)
    known = f" Shipped ones: {', '.join(found)}." if found else " See configs/README.md."
    run = "" if command == "fit" else " or --run RUN"
    return f"{command} needs settings: --config FILE.yaml{run}.{known}"


def is_help(words: Sequence[str]) -> bool:
    """Whether the words ask for the help of a trainer command."""
    return bool({"-h", "--help"} & set(words))


def version() -> str:
    """Name and version of the package."""
    return f"mathcanvas_lightning {__version__}"
