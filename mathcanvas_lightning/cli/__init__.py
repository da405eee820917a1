"""The command line: `mathcanvas COMMAND`.

In: words of the command line and YAML files. Out: tables on screen and an exit status.
"""
