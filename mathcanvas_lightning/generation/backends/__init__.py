"""Where requests are answered: an echo for tests, a chat server, vLLM.

In: requests. Out: responses, in the order in which they finish.
"""
