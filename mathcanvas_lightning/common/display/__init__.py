"""How objects and texts are shown: short reprs, boxes, notebooks, help(), formulas.

In: texts, pictures and dataclasses of any origin. Out: short texts, boxes in
the terminal, and escaped HTML that loads nothing.
"""
