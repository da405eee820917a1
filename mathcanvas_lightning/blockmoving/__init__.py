"""The puzzle world: stacks of cubes that move and fall.

In: a seed and a level. Out: puzzles with pictures and a chain of thought.
"""
