"""BAGEL in two processes: vLLM writes all texts, the native steps draw, both at the same time.

In: requests. Out: responses with drawings, as from the native backend. Nothing here imports vllm.
"""
