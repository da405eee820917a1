"""The native backend: BAGEL writes, draws, reads its drawing and continues.

In: requests. Out: responses with drawings; many problems advance in one batch.
"""
