"""The native backend: BAGEL writes a text, draws a picture, reads it and continues.

In: requests. Out: responses with drawings. Many problems advance in one batch.
"""
