"""`mathcanvas generate-response` as a file; --help lists its options."""

from mathcanvas_lightning.cli.entry import run

if __name__ == "__main__":
    run("generate-response")
