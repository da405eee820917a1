"""The run card beside a file of scores: what one needs to get the same scores again.

In: the scores, and what the journal knows of the answers. Out: a JSON file and a page of Markdown.
"""
