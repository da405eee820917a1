"""Finds the cause of a failed engine in vLLM's output, and the advice for it."""

import re
from collections.abc import Sequence

ERROR_LINE = re.compile(r"(?:^|\bERROR\b.*?\] )((?:[\w.]*(?:Error|Exception)|Worker proc)\b.+)")
"""Matches a log line, or the last line of a traceback, that names an error."""
REMEDIES = (
    (
        r"status.* -9\b|Worker proc.* died",
        "The process was killed, most likely because the machine ran out of memory.",
    ),
    (
        r"out of memory|OutOfMemory|No available memory|Free memory on device|KV cache.*(needed|"
        r"larger)|memory.*kv",
        "Lower max_model_len, set gpu_memory_utilization to the free share, or use more GPUs with "
        "tensor_parallel_size.",
    ),
    (
        r"torchvision",
        "torchvision does not fit this torch: install the matching version, or run "
        "pip uninstall torchvision torchaudio torchcodec.",
    ),
    (
        r"No module named '(vllm|torch)|undefined symbol|cannot open shared object",
        "This vLLM does not fit the installed torch or driver: pip install '.[vllm]'.",
    ),
    (
        r"max_model_len|max_position_embeddings",
        "Lower max_model_len to the maximum of the model.",
    ),
    (
        r"config\.json|Repo id|not a valid model identifier|is not a local folder",
        "Set model_path to a folder with config.json, weights and tokenizer, or to a hub name.",
    ),
)
"""Pattern in vLLM's error -> advice for the user."""


def find_cause(error: str, lines: Sequence[str]) -> str:
    """Finds vLLM's own message for a failure.

    Args:
        error: Error that the engine's main process received; "" if none.
        lines: Last output lines of the engine's processes.

    Returns:
        The error; if it only refers to another one ("See root cause above"), the first error in
        the output. "" without an error.
    """
    if not error or "root cause" in error:
        found = (match[1] for line in lines if (match := ERROR_LINE.search(line)))
        error = next((text for text in found if "root cause" not in text), error)
    return re.sub(r"\s*\[type=.*", "", error, flags=re.DOTALL)


def find_remedy(cause: str) -> str:
    """Advice for a failure, chosen by vLLM's message."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, cause):
            return remedy
    return "Run with VLLM_LOGGING_LEVEL=INFO and --verbose to see all messages of vLLM."
