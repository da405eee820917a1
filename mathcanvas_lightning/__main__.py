"""`python -m mathcanvas_lightning` is `mathcanvas`."""

import sys

from mathcanvas_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
