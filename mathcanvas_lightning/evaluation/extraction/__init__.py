"""The final answer of a response, and the parts of a reference.

In: the text of a response; where needed, the mark that the prompt asks for. Out: one answer per
part.
"""

from mathcanvas_lightning.evaluation.extraction.answer import extract_answer, extract_answers
from mathcanvas_lightning.evaluation.extraction.cleaning import clean, split_list
from mathcanvas_lightning.evaluation.extraction.parts import reference_parts
from mathcanvas_lightning.evaluation.extraction.pattern import PRESETS, answer_pattern

__all__ = [
    "PRESETS",
    "answer_pattern",
    "clean",
    "extract_answer",
    "extract_answers",
    "reference_parts",
    "split_list",
]
