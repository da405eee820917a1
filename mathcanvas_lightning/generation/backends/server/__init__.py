"""Backend for OpenAI-compatible chat servers: a running one, or one that it starts itself.

In: requests. Out: responses; failed calls are retried.
"""
