"""Runs `mathcanvas report`; --help lists the options."""

from mathcanvas_lightning.cli.entry import run

if __name__ == "__main__":
    run("report")
