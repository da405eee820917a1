"""Many models on many data sets, compared record by record.

In: files of scores. Out: accuracies with intervals, differences from the first model, records that
only one of two models answers correctly; as a table on the terminal, Markdown, LaTeX or HTML.
"""
