"""What is needed to repeat a run: the versions of the software, and the command."""

import inspect
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mathcanvas_lightning.generation.backends.secrets import shown_command
from mathcanvas_lightning.records.record import RecordInput
from mathcanvas_lightning.records.survey import RecordKey

PACKAGE = "mathcanvas-lightning"
_TIMEOUT_S = 10


def run_facts(
    source: RecordInput, keys: Iterable[RecordKey], command: str | None
) -> dict[str, Any]:
    """What a run notes in the journal of an input, for those who repeat it.

    Args:
        source: The input.
        keys: Keys of the records that need an answer, also those of other inputs.
        command: The command as it was typed, without secrets; None in a run without a command.

    Returns:
        JSON values. The fingerprint changes with questions, picture references and order, and with
        other fields that the prompt reads.
    """
    digest, count = blake2b(digest_size=8), 0
    for key in keys:
        if key.label == source.label:
            digest.update(f"{key.uid}\0{key.digest}\0".encode(errors="surrogatepass"))
            count += 1
    data = {"path": source.path, "records": count, "fingerprint": digest.hexdigest()}
    return {"data": data, "software": software(), "command": command}


def software() -> dict[str, Any]:
    """Versions of this package, its git commit if it runs from a repository, and Python."""
    try:
        package: str | None = version(PACKAGE)
    except PackageNotFoundError:
        package = None
    return {
        "mathcanvas_lightning": package,
        "commit": git_commit(Path(__file__)),
        "python": platform.python_version(),
    }


def git_commit(file: Path) -> str | None:
    """The commit of the repository that tracks a file.

    Args:
        file: A file; a repository that only contains its folder, such as that of a project with a
            virtual environment, does not count.

    Returns:
        The hash, with "+changes" if tracked files were changed; None without git or repository.
    """
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit, changes = _git(file, "rev-parse", "HEAD"), _git(file, "diff", "--stat", "HEAD")
    return commit and f"{commit}{'+changes' if changes else ''}"


def command_of(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """The command that calls a function, with the options that differ from their defaults.

    Args:
        name: Name of the command.
        function: Its function.
        given: Parameter -> value of a call.

    Returns:
        One line for a shell, without secrets.
    """
    words = ["mathcanvas", name]
    for parameter in inspect.signature(function).parameters.values():
        value = given.get(parameter.name, parameter.default)
        if value == parameter.default or parameter.name == "progress":
            continue
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
        if not values:
            continue  # the command line gives [] where the default is ()
        flag = parameter.annotation is bool and parameter.default is False
        words += [f"--{parameter.name}", *([] if flag else map(str, values))]
    return shown_command(words)


def _git(file: Path, *words: str) -> str | None:
    """Output of a command of git in the folder of a file; None if it fails."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *words],  # noqa: S607
            cwd=file.parent,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
