"""Draws puzzle.png beside this file: held-out puzzles with the text and the drawing of the model.

Run the quickstart first; then, with any two puzzles:
  python .github/images/puzzle.py task_3 task_8
"""

import json
import sys
from io import BytesIO
from pathlib import Path
from textwrap import wrap

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
DEMO = FOLDER.parent.parent / "demo"
ZOOM, MARGIN, LINE_PX, TEXT_PX = 3, 16, 18, 430
INK, PALE, GOOD, BAD = (36, 41, 47), (110, 118, 129), (26, 127, 55), (198, 40, 40)


def draw_page(records: list[dict], answers: Path) -> Image.Image:
    """One row per puzzle: question, the model's words, its drawing, the true picture."""
    side = 48 * ZOOM
    width, height = 3 * side + TEXT_PX + 5 * MARGIN, 2 * side + 2 * LINE_PX + MARGIN
    page = Image.new("RGB", (width, len(records) * height), "white")
    canvas = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)

    def write(x: int, y: int, text: str, colour: tuple[int, int, int] = INK) -> int:
        for line in wrap(text, 66):
            canvas.text((x, y), line, colour, font)
            y += LINE_PX
        return y

    for row, record in enumerate(records):
        top = row * height + MARGIN
        steps = json.loads((answers / record["id"] / "reasoning_result.json").read_text())
        texts = [s["content"] for s in steps["reasoning_steps"] if s["type"] == "text"]
        drawn = [s["content"] for s in steps["reasoning_steps"] if s["type"] == "image"]
        question, *_ = record["question_images"]
        write(MARGIN, top, "before / after", PALE)
        _paste(page, _open(question["bytes"]), MARGIN, top + LINE_PX)
        x = side + 2 * MARGIN
        y = write(x, top, "The model's answer", PALE)
        for item in json.loads(record["question_interleave"]):
            if item["type"] == "text":
                y = write(x, y, " ".join(item["content"].split()), PALE) + 6
        for text in texts:
            y = write(x, y, " ".join(text.split())) + 6
        is_right = texts[-1].strip().endswith(f"answer is {record['answer']}.")
        verdict = "right" if is_right else f"wrong: {record['answer']}"
        write(x, y, verdict, GOOD if is_right else BAD)
        x += TEXT_PX + MARGIN
        write(x, top, "its drawing", PALE)
        _paste(page, Image.open(answers / record["id"] / drawn[0]), x, top + LINE_PX)
        write(x + side + MARGIN, top, "true picture", PALE)
        _paste(page, _open(record["solution_images"][0]["bytes"]), x + side + MARGIN, top + LINE_PX)
    return page


def _open(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def _paste(page: Image.Image, picture: Image.Image, x: int, y: int) -> None:
    page.paste(picture.resize((picture.width * ZOOM, picture.height * ZOOM), 0), (x, y))


if __name__ == "__main__":
    records = {one["id"]: one for one in pq.read_table(DEMO / "reasoning.parquet").to_pylist()}
    chosen = [records[name] for name in sys.argv[1:] or list(records)[:2]]
    page = draw_page(chosen, DEMO / "reasoning")
    page.quantize(128).save(FOLDER / "puzzle.png", optimize=True)
