"""Messages of commands: what is shown on standard error, and the log file of a run."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "mathcanvas_lightning"
LIGHTNING = ("lightning.pytorch", "lightning.fabric")
FILE_ONLY = {"file_only": True}
"""`extra` of a message that only the log file of a run gets."""
NOISE = (
    ".*LeafSpec",  # a deprecation between Lightning and PyTorch
    "LightningCLI's args parameter",
    ".*does not have many workers",
    "The number of training batches",
    ".*exists and is not empty",
    ".*tensorboardX",
    r"It is recommended to use `self\.log\('(val|answers)/",  # computed over all ranks already
)
"""Warnings about things that a user of this package can't or need not change."""
NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")
"""Loggers whose warnings, at the import of torchao or bitsandbytes, are such ones too."""
_FOLDER = str(Path(__file__).parent.parent) + os.sep
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the standard error of the moment, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Ours(logging.Filter):
    """Drops Lightning's messages below warnings, except those that this package sends there."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_ours = record.name.startswith(PACKAGE) or record.pathname.startswith(_FOLDER)
        return is_ours or record.levelno >= logging.WARNING


class _Shown(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "file_only", False)


def set_up_logging(verbosity: int = 0) -> None:
    """Shows the messages of this package, and few of those of others, on standard error.

    Args:
        verbosity: -1 shows only warnings and errors; 1 shows all messages of Lightning too, and
            the details of this package.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    is_first = not any(os.environ.get(name, "0") != "0" for name in _RANKS)
    console = _Console()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.setLevel(level if is_first else max(level, logging.WARNING))
    console.addFilter(_Shown())
    if verbosity < 1:
        console.addFilter(_Ours())
        for text in NOISE:
            warnings.filterwarnings("ignore", message=text)
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it warns of torchao at its import
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR if verbosity < 1 else logging.NOTSET)
    package = logging.getLogger(PACKAGE)
    package.setLevel(level)
    _replace_handlers(package, console)
    show_lightning()


def show_lightning() -> None:
    """Shows Lightning's messages as `set_up_logging` says, once Lightning is imported."""
    package = logging.getLogger(PACKAGE)
    console = next((h for h in package.handlers if isinstance(h, _Console)), None)
    if console is None:
        return
    _drop_handlers(logging.getLogger("lightning"))
    for name in LIGHTNING:
        if name in sys.modules:
            _replace_handlers(logging.getLogger(name), console)


def _replace_handlers(logger: logging.Logger, console: _Console) -> None:
    _drop_handlers(logger)
    logger.addHandler(console)


def _drop_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        if type(handler) in (_Console, logging.StreamHandler):
            logger.removeHandler(handler)


def is_quiet() -> bool:
    """Whether a command was asked to show only warnings and errors."""
    return logging.getLogger(PACKAGE).level > logging.INFO


@contextlib.contextmanager
def log_file(path: Path | None) -> Iterator[None]:
    """Appends the messages of the block to a file, with their times.

    Args:
        path: The file; its folder is made with the first message. None writes nothing.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.addFilter(_Ours())
    loggers = [logging.getLogger(name) for name in (PACKAGE, *LIGHTNING)]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
