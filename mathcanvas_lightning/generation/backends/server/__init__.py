"""Any OpenAI-compatible chat server, running or started for the run.

In: requests. Out: responses; failed calls are retried.
"""
