"""Small sources for conversions."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from mathcanvas_lightning import convert_cot
from mathcanvas_lightning.conversion.report import ConversionReport
from tests.conftest import png


def run(input_file: Path, output: Path, **options: Any) -> ConversionReport:
    """Converts in this process."""
    return convert_cot(str(input_file), str(output), **{"num_workers": 0, **options})


def canvas_record(number: int, image: str = "a.png") -> dict[str, Any]:
    """A record in the MathCanvas format."""
    return {
        "id": f"m{number}",
        "question_interleave": [
            {"type": "text", "content": f"Question {number}"},
            {"type": "image", "content": image},
        ],
        "solution_interleave": [{"type": "text", "content": f"Solution {number}"}],
        "answer": str(number),
    }


def canvas_source(folder: Path, count: int) -> Path:
    """A file of MathCanvas records beside their image."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.png").write_bytes(png())
    path = folder / "x.json"
    path.write_text(json.dumps([canvas_record(number) for number in range(count)]))
    return path


def puzzle_source(folder: Path, **fields: Any) -> Path:
    """A file of two BlockMoving records with further fields."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.png").write_bytes(png())
    text = "<image>a.png</image> So it is B."
    records = [
        {"task_id": number, "gt": "B", "pred": "B", "cot_text": text, **fields}
        for number in range(2)
    ]
    path = folder / "x.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def noise_png() -> bytes:
    """A picture of several kilobytes."""
    buffer = BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "PNG")
    return buffer.getvalue()
