"""Options of torch.compile for packs of any length."""

from typing import Any

import torch

MAX_GRAPHS = 64
"""Maximum number of graphs of one compiled function."""


def compile_options(*, fullgraph: bool) -> dict[str, Any]:
    """Returns options for `torch.compile` and `Module.compile`, and raises the limit of graphs.

    Packs with and without images, short ones, training and validation need a graph each. At torch's
    limit of 8 graphs a function would run uncompiled from then on, without a word. With `fullgraph`
    it is an error at the raised limit instead.

    Args:
        fullgraph: Whether a function that can't be compiled completely is an error.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    return {"dynamic": True, "fullgraph": fullgraph}
