"""Shell completion of commands and options, with shtab."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence

from mathcanvas_lightning.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")


def completion_script(
    words: Sequence[str], options: Mapping[str, Callable[[], Iterable[str]]]
) -> str:
    """Makes the script for `mathcanvas --print_shtab SHELL`.

    Args:
        words: `--print_shtab` and the shell, also in one word.
        options: Command -> a function that lists its options.

    Returns:
        The script.

    Raises:
        ConfigError: If the shell is unknown.
    """
    shell = words[0].partition("=")[2] or (words[1] if len(words) > 1 else "")
    if shell not in SHELLS:
        raise ConfigError(
            "--print_shtab",
            found=shell or "no shell",
            wanted=f"one of {', '.join(SHELLS)}",
            remedy='For example: eval "$(mathcanvas --print_shtab bash)"',
        )
    import shtab

    parser = argparse.ArgumentParser(prog="mathcanvas")
    commands = parser.add_subparsers()
    for name, list_options in options.items():
        command = commands.add_parser(name, help=name)  # without a help, shtab hides it
        for option in list_options():
            if option not in ("-h", "--help"):
                command.add_argument(option).complete = shtab.FILE  # type: ignore[attr-defined]
        command.add_argument("files", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))
