"""A conversation with a model: questions with pictures in, texts and drawings out as they are made.

Conversations are plain data; a local web page and the terminal (`cli/`) show them.
"""
