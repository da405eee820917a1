"""Backend for vLLM's offline engine, which runs in a child process.

In: requests. Out: responses. Only `engine.py` imports vllm.
"""
