"""Runs `mathcanvas compare`; --help lists the options."""

import sys

from mathcanvas_lightning.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("compare"))
