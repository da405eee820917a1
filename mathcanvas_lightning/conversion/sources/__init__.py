"""Source formats, one module each: a parsed JSON record -> texts and paths of images.

In: one record as a dict. Out: a `Draft`, or a `RejectError` with the reason. A new format is a
subclass of `SourceFormat` with one method; `mathcanvas generate-handler` writes an example.
"""

from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.conversion.sources.base import (
    Draft,
    Part,
    Picture,
    SourceFormat,
    options_text,
    text_field,
)
from mathcanvas_lightning.conversion.sources.blockmoving import (
    BLOCKMOVING_PROMPT,
    RENDER_MARK,
    BlockMoving,
    split_image_tags,
)
from mathcanvas_lightning.conversion.sources.mathcanvas import MathCanvas
from mathcanvas_lightning.conversion.sources.mathvision import MathVision

BUILT_IN: tuple[type[SourceFormat], ...] = (BlockMoving, MathCanvas, MathVision)

__all__ = [
    "BLOCKMOVING_PROMPT",
    "BUILT_IN",
    "RENDER_MARK",
    "BlockMoving",
    "Draft",
    "MathCanvas",
    "MathVision",
    "Part",
    "Picture",
    "Reason",
    "RejectError",
    "SourceFiles",
    "SourceFormat",
    "options_text",
    "split_image_tags",
    "text_field",
]
