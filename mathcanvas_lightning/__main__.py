"""`python -m mathcanvas_lightning` is `mathcanvas`."""

import sys
from pathlib import Path

# `python -m` puts the working folder first, where a file of data could replace an installed module.
if __name__ == "__main__" and sys.path[0] in ("", str(Path.cwd())):
    sys.path.pop(0)
    sys.path.append(str(Path(__file__).parent.parent))

from mathcanvas_lightning.cli.entry import run

if __name__ == "__main__":
    run()
