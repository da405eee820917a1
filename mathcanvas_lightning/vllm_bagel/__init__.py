"""Plugin that makes vLLM compute what BAGEL was trained to compute; vLLM finds it by entry point.

In: contexts of token ids and image blocks. Out: vLLM's model, processor, scheduler and attention.
This file and `blocks.py` import neither vllm nor torch.
"""

import json
from pathlib import Path

ARCHITECTURE = "MathCanvasBagel"
"""Name of the model in vLLM."""
PLUGIN = "mathcanvas_bagel"
"""Name of the entry point, for `VLLM_PLUGINS`."""
PAD = "<|image_pad|>"
"""Token that stands for an image block in a prompt."""
CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"
"""Makes BAGEL's sequence of a conversation; each picture becomes a `PAD`."""


def is_bagel(path: str) -> bool:
    """Whether a path is the directory of a BAGEL model.

    Args:
        path: Folder of a model, or its hub name.
    """
    try:
        content = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == "bagel"
