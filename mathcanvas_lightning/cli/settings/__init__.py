"""What a run's name and folder mean for its settings, and what is wrong with settings.

In: words of the command line and YAML files. Out: the words that LightningCLI reads, or one line.
"""
