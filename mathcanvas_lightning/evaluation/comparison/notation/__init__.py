"""The canonical notation of answers.

In: an answer in plain text, Unicode, Chinese or LaTeX. Out: the same answer on one line, with one
way to write each sign, number, root, power, fraction, set and matrix.
"""

from mathcanvas_lightning.evaluation.comparison.notation.rewriting import (
    FUNCTIONS,
    canonical,
    partner,
)

__all__ = ["FUNCTIONS", "canonical", "partner"]
