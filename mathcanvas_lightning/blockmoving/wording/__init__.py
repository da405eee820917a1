"""Puzzles in words: whole sentences, as few tokens as possible, or moves without any stack.

In: a puzzle and the tags of its pictures. Out: the words of its options and its chain of thought.
"""
