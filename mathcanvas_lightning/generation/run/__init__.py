"""The predict loop: data module, module, journal, writers.

In: records and a backend. Out: a journal of every answer, the output files, folders of drawings.
"""
