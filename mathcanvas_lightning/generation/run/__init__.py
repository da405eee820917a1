"""The predict loop: data module, module, journal, writers.

In: records and a backend. Out: a journal of all answers, the output files, folders of drawings.
"""
