"""Backends that answer requests: a chat server, vLLM, and an echo for tests.

In: requests. Out: responses, in the order in which they finish.
"""
