"""Small invented records in the layouts of public data sets."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import png

COLOURS = ("red", "green", "blue", "black")
PNGS = {colour: png(16, 16, colour) for colour in COLOURS}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(colour: str) -> dict[str, Any]:
    """An image of a Hugging Face data set."""
    return {"bytes": PNGS[colour], "path": f"{colour}.png"}


@dataclass(frozen=True, kw_only=True)
class PublicSample:
    """A record as it is published, and what it must become."""

    record: Mapping[str, Any]
    question: Sequence[str]
    """Texts, and pictures as `@colour`."""
    solution: Sequence[str]
    answer: str
    is_parquet: bool = True
    """Whether the data set is published as Parquet; JSON lines otherwise."""
    nulls: Sequence[str] = ()
    """Columns of Arrow's type null."""
    for_prediction: bool = False
    """Whether it has no solutions."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Expected extra columns."""


def interleave(*items: str) -> list[dict[str, Any]]:
    """Texts, and pictures as `@`, in the layout of MathCanvas."""
    kinds = ["image" if item == "@" else "text" for item in items]
    return [
        {
            "content": None if kind == "image" else item,
            "index": kinds[:number].count(kind),
            "type": kind,
        }
        for number, (item, kind) in enumerate(zip(items, kinds, strict=True))
    ]


SAMPLES: dict[str, PublicSample] = {
    "mathcanvas": PublicSample(
        record={
            "id": "a1",
            "question_interleave": interleave("How large?", "@"),
            "question_images": [picture("red")],
            "solution_interleave": interleave("Draw.", "@", "So 4."),
            "solution_images": [picture("blue")],
            "answer": "4",
            "options": None,
            "knowledge": "Algebra",
        },
        nulls=["options"],
        question=["How large?", "@red"],
        solution=["Draw.", "@blue", "So 4."],
        answer="4",
        extras={"knowledge": "Algebra", "options": None},
    ),
    "mathcanvas_edit": PublicSample(
        record={
            "image_list": [picture("red"), picture("green"), picture("blue")],
            "instruction_list": [["Add a line.", "Draw a line."], ["Add a circle."]],
        },
        question=["@red", "Add a line."],
        solution=["@green", "Add a circle.", "@blue"],
        answer="Add a circle.",
    ),
    "mathcanvas_imagen": PublicSample(
        record={"id": "g1", "code": "x", "caption": "A square.", "image": picture("red")},
        question=["A square."],
        solution=["@red"],
        answer="a drawing",
        extras={"code": "x"},
    ),
    "zebra_cot": PublicSample(
        record={
            "Question": "See <image_start>[problem_image_1]<image_end> Which?",
            "Text Reasoning Trace": "THOUGHT 0: Look. <image_start>[reasoning_image_2]<image_end> "
            "THOUGHT 1: Then <image_start>[reasoning_image_1]<image_end>.",
            "Final Answer": "B",
            "problem_image_1": picture("red"),
            "problem_image_2": None,
            "reasoning_image_1": picture("green"),
            "reasoning_image_2": picture("blue"),
            "reasoning_image_10": None,
        },
        question=["See", "@red", "Which?"],
        solution=["Look.", "@blue", "Then", "@green", ".", "Final Answer: B"],
        answer="B",
    ),
    "thinkmorph": PublicSample(
        record={
            "pid": "t1",
            "question": "Where?",
            "problem_image_0": picture("red"),
            "resoning_thought_0": "<think>Mark it.</think>",
            "reasoning_image_0": picture("green"),
            "resoning_thought_1": "<think>There.</think>",
            "answer": "left",
            "task": "jigsaw",
        },
        question=["@red", "Where?"],
        solution=["Mark it.", "@green", "There.", "Final Answer: left"],
        answer="left",
        extras={"task": "jigsaw"},
    ),
    "thinkmorph_train": PublicSample(
        record={
            "image_list": [picture("red"), picture("green")],
            "instruction_list": ["Where?"],
            "output_text_list": [
                "<think>Mark it.</think><image_start>",
                "<image_end><think>There.</think><answer>left</answer>",
            ],
        },
        question=["@red", "Where?"],
        solution=["Mark it.", "@green", "There.\nleft"],
        answer="left",
    ),
    "sharegpt": PublicSample(
        record={
            "id": "000001",
            "image": "pictures/red.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhich colour?"},
                {"from": "gpt", "value": "Red."},
            ],
        },
        is_parquet=False,
        question=["@red", "Which colour?"],
        solution=["Red."],
        answer="Red.",
    ),
    "messages": PublicSample(
        record={
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": "<image>Which colour?"},
                {"role": "assistant", "content": "Draw. <image> Red."},
            ],
            "images": ["pictures/red.png", "pictures/blue.png"],
        },
        is_parquet=False,
        question=["Be brief.", "@red", "Which colour?"],
        solution=["Draw.", "@blue", "Red."],
        answer="Draw.\nRed.",
    ),
    "mathvision": PublicSample(
        record={
            "id": "4",
            "question": "Which? <image1>",
            "options": ["one", "two"],
            "image": "images/4.jpg",
            "decoded_image": picture("red"),
            "answer": "B",
            "solution": "See <image1>, two.",
            "level": 2,
        },
        question=["Which?", "@red", "Options:\nA: one\nB: two"],
        solution=["See , two."],
        answer="B",
        extras={"level": 2},
    ),
    "mathvista": PublicSample(
        record={
            "pid": "7",
            "question": "How many?",
            "image": "images/7.jpg",
            "decoded_image": picture("red"),
            "choices": None,
            "unit": None,
            "precision": 1.0,
            "answer": "3",
            "question_type": "free_form",
            "metadata": {"split": "testmini"},
        },
        nulls=["unit"],
        question=["@red", "How many?"],
        solution=[],
        answer="3",
        for_prediction=True,
        extras={"unit": None, "precision": 1.0, "question_type": "free_form"},
    ),
    "mathverse": PublicSample(
        record={
            "sample_index": "1",
            "problem_index": "1",
            "problem_version": "Vision Only",
            "question": "",
            "image": picture("red"),
            "answer": "A",
            "query_wo": "Answer.",
            "query_cot": "Reason, then answer.",
        },
        question=["@red", "Reason, then answer."],
        solution=[],
        answer="A",
        for_prediction=True,
        extras={"problem_index": "1", "problem_version": "Vision Only", "query_wo": "Answer."},
    ),
    "we_math": PublicSample(
        record={
            "ID": "12",
            "key": "2steps_1",
            "question": "Which?",
            "option": "A. 3; B. 4; C. No correct answer",
            "answer": "B",
            "image_path": picture("red"),
            "knowledge concept": "Area",
            "question number": 12,
        },
        question=["@red", "Which?", "A. 3; B. 4; C. No correct answer"],
        solution=[],
        answer="B",
        for_prediction=True,
        extras={"knowledge concept": "Area", "question number": 12},
    ),
    "visulogic": PublicSample(
        record={
            "image_path": "pictures/red.png",
            "question": "Which comes next?",
            "label": "C",
            "id": "00000",
            "tag": "Style",
        },
        is_parquet=False,
        question=["@red", "Which comes next?"],
        solution=[],
        answer="C",
        for_prediction=True,
        extras={"tag": "Style"},
    ),
    "emma": PublicSample(
        record={
            "pid": "math_1",
            "question": "Which follows <image_1>?",
            "options": ["<image_3>", "none"],
            "answer": "A",
            "image_1": picture("red"),
            "image_2": None,
            "image_3": picture("blue"),
            "solution": None,
            "context": None,
            "subject": "Math",
        },
        nulls=["solution", "context"],
        question=["Which follows", "@red", "?", "Options:\nA:", "@blue", "B: none"],
        solution=[],
        answer="A",
        for_prediction=True,
        extras={"subject": "Math"},
    ),
    "open_r1": PublicSample(
        record={
            "image": picture("red"),
            "problem": "How many?",
            "solution": "<think>Count.</think>\n<answer>5</answer>",
        },
        question=["@red", "How many?"],
        solution=["Count.\n5"],
        answer="5",
    ),
}


def write_sample(name: str, folder: Path, *, count: int = 1) -> Path:
    """Writes the file of a sample as it is published; the ids of several records differ."""
    sample = SAMPLES[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    for colour, data in PNGS.items():
        (folder / "pictures" / f"{colour}.png").write_bytes(data)
    records = [_numbered(dict(sample.record), number) for number in range(count)]
    if not sample.is_parquet:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path
    path = folder / f"{name}.parquet"
    table = pa.Table.from_pylist(records)
    for column in sample.nulls:
        index = table.schema.get_field_index(column)
        table = table.set_column(index, column, pa.nulls(count))
    pq.write_table(table, path)
    return path


def _numbered(record: dict[str, Any], number: int) -> dict[str, Any]:
    for key in ("id", "pid", "sample_index", "ID"):
        if number and key in record:
            record[key] = f"{record[key]}{number}"
    if number and "Question" in record:
        record["Question"] = f"{record['Question']} {number}"
    return record


def data_url(colour: str) -> str:
    """A picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(PNGS[colour]).decode()}"
