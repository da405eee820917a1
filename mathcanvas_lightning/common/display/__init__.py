"""How objects and texts are shown: short reprs, notebooks, help(), formulas.

In: texts, pictures and dataclasses of any origin. Out: short texts, and escaped HTML that loads
nothing.
"""
