"""Numbers and units: a closed table, exact fractions.

In: a text in canonical form. Out: a number, a unit, or whether two measures are equal.
"""
