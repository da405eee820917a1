"""Turns the name or folder of a run into settings, and explains wrong settings in one line.

In: words of the command line and YAML files. Out: the words that LightningCLI reads, or one line.
"""
