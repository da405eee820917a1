"""vLLM in a child process.

In: requests. Out: responses. The only room that imports vllm.
"""
