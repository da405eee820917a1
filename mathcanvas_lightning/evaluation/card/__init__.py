"""The run card beside a file of scores: what is needed to reproduce the scores.

In: the scores, and what the journal knows of the answers. Out: a JSON file and a page of Markdown.
"""
