"""Trains an image autoencoder; same as `mathcanvas train-vae`, see --help for the options."""

import sys

from mathcanvas_lightning.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("train-vae"))
