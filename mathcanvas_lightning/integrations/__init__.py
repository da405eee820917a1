"""Our models inside other programs that evaluate models; nothing here is imported otherwise.

In: the questions of such a program, as conversations. Out: answers, and files as `predict` writes.
"""
