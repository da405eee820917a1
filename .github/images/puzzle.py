"""Draws puzzle.png beside this file: a generated puzzle with its solution, step by step.

Example:
  python .github/images/puzzle.py
"""

import json
import re
import tempfile
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from mathcanvas_lightning import generate_blockmoving

FOLDER = Path(__file__).parent
VIEW_PX, MARGIN, LINE_PX = 128, 18, 19
INK, PALE, GOOD = (36, 41, 47), (110, 118, 129), (26, 127, 55)
SEED, TASK = 0, 3


def draw_puzzle_page() -> Image.Image:
    """Question on the left; steps, drawings and answer on the right."""
    with tempfile.TemporaryDirectory() as folder:
        report = generate_blockmoving(
            folder, num_tasks=TASK + 1, seed=SEED, view_px=VIEW_PX, wrong_fraction=0.0,
            unrendered_fraction=0.0, num_workers=0, progress=False,
        )  # fmt: skip
        record = json.loads(Path(report.source_file).read_text(encoding="utf-8"))[TASK]
        task = Path(folder, f"task_{TASK}")
        options = json.loads((task / "data.json").read_text(encoding="utf-8"))["options"]
        composite = Image.open(task / "composite.png").convert("RGB")
        drawings = [
            Image.open(Path(folder, path)).convert("RGB")
            for path in re.findall(r"<image>(task_\d+/step_\d+\.png)</image>", record["cot_text"])
        ]
    steps = re.findall(r"^Step \d+: .*$", record["cot_text"], re.MULTILINE)
    width, height = 3 * VIEW_PX, len(drawings) * (VIEW_PX + MARGIN) + 4 * LINE_PX
    page = Image.new("RGB", (3 * width + 4 * MARGIN, height), "white")
    canvas = ImageDraw.Draw(page)

    def write(x: int, y: int, text: str, colour: tuple[int, int, int] = INK) -> int:
        for line in wrap(text, 58):
            canvas.text((x, y), line, colour, ImageFont.load_default(14))
            y += LINE_PX
        return y

    y = write(MARGIN, MARGIN, "Question", PALE)
    y = write(MARGIN, y, "Which moves turn the upper stack into the lower one?")
    page.paste(composite, (MARGIN, y))
    y += composite.height + MARGIN
    for letter, moves in options.items():
        y = write(MARGIN, y, f"{letter}.  {moves}")
    x = width + 2 * MARGIN
    y = write(x, MARGIN, "Answer: text and drawings in turn", PALE)
    for text, drawing in zip(steps, drawings, strict=True):
        write(x, y + MARGIN, text)
        page.paste(drawing, (x + width + MARGIN, y))
        y += VIEW_PX + MARGIN
    write(x, y, f"So the answer is {record['gt']}.", GOOD)
    return page


if __name__ == "__main__":
    draw_puzzle_page().quantize(64).save(FOLDER / "puzzle.png", optimize=True)
