"""Trains an image autoencoder; same as `mathcanvas train-vae`, see --help for the options."""

from mathcanvas_lightning.cli.entry import run

if __name__ == "__main__":
    run("train-vae")
