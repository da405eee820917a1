"""Our model in lmms-eval: against a stand-in of its interface, and against the package itself."""

import json
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mathcanvas_lightning import BagelBackend, DrawingConfig, RecordInput
from mathcanvas_lightning.blockmoving.generate import generate_blockmoving
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from tests.conftest import ROOT, TRAINER_WARNINGS
from tests.generation.reasoning import TRANSFORMS, drawing_checkpoint
from tests.generation.runs import predict, read_lines
from tests.integrations.stand_in import Instance, installed, requests

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]

SAMPLING = {"temperature": 0.0, "max_tokens": 160, "seed": 3}
BUDGET = {"max_steps": 2, "max_images": 1, "max_context_tokens": 512}


@pytest.fixture
def echo(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a model that repeats the question."""
    path = tmp_path / "echo.yaml"
    backend = {"class_path": "mathcanvas_lightning.EchoBackend"}
    path.write_text(yaml.safe_dump({"model": {"init_args": {"backend": backend}}}))
    return {"config": str(path), "output": str(tmp_path / "out"), "device": "cpu"}


def test_requests_of_several_tasks(echo: dict[str, Any], tmp_path: Path) -> None:
    docs = [{"text": f"Question {n} \\frac<image>?", "images": ()} for n in range(3)]
    with installed() as kind:
        model = kind(**echo)
        first = requests(model, "a", docs, max_new_tokens=16, until=["\n\n"], do_sample=False)
        second = requests(model, "b", docs[:1], temperature=0.7)
        mixed = [first[2], second[0], first[0], first[1]]
        texts = [docs[2]["text"], docs[0]["text"], docs[0]["text"], docs[1]["text"]]
        assert model.generate_until(mixed) == texts
    lines = read_lines(tmp_path / "out" / "a_answers.jsonl.journal" / "rank0.jsonl")
    assert len(lines) == 3
    assert lines[0]["sampling"]["max_tokens"] == 16
    assert lines[0]["sampling"]["temperature"] == 0


def test_answers_are_kept_and_resumed(echo: dict[str, Any], tmp_path: Path) -> None:
    docs = [{"text": f"Question {n}?", "images": [Image.new("CMYK", (9, 9))]} for n in range(3)]
    with installed() as kind:
        for count in (2, 3, 3):
            model = kind(**echo)
            assert len(model.generate_until(requests(model, "a", docs[:count]))) == count
        journal = tmp_path / "out" / "a_answers.jsonl.journal" / "rank0.jsonl"
        assert len(read_lines(journal)) == 3
        (picture,) = (tmp_path / "out" / "a_pictures").iterdir()
        with Image.open(picture) as found:
            assert found.mode == "RGB"
        with pytest.raises(OutputError, match="rerun"):
            other = kind(**echo, temperature=0.5)
            other.generate_until(requests(other, "a", docs))
        again = kind(**echo, temperature=0.5, rerun=True)
        assert len(again.generate_until(requests(again, "a", docs))) == 3
    assert read_lines(journal)[-1]["sampling"]["temperature"] == 0.5


def test_a_repeated_request_gets_several_samples(echo: dict[str, Any], tmp_path: Path) -> None:
    with installed() as kind:
        model = kind(**echo)
        one, other = requests(model, "a", [{"text": "One?"}, {"text": "Two?"}])
        assert model.generate_until([one, one, other]) == ["One?", "One?", "Two?"]
    lines = read_lines(tmp_path / "out" / "a_answers.jsonl.journal" / "rank0.jsonl")
    assert [line["sampling"]["n"] for line in lines] == [2, 2]


def test_a_question_that_fails_has_an_empty_answer(
    echo: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with installed() as kind:
        model = kind(**echo)
        asked = requests(model, "a", [{"text": "Good?"}, {"text": " "}])
        assert model.generate_until(asked) == ["Good?", ""]
    assert "1 of 2 requests have no answer" in caplog.text


def test_what_is_not_possible(echo: dict[str, Any], tmp_path: Path) -> None:
    with installed() as kind:
        model = kind(**echo)
        for call in (model.loglikelihood, model.generate_until_multi_round):
            with pytest.raises(ConfigError, match="generate_until"):
                call([])
        clip = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
        model.task_dict["a"] = {"test": [{}]}
        with pytest.raises(InputError, match="video"):
            model.generate_until([Instance(("", lambda _: clip, {}, 0, "a", "test"))])
        with pytest.raises(ConfigError, match="checkpoint=FOLDER"):
            kind(mode="interleaved")
        with pytest.raises(ConfigError, match="max_stepz"):
            kind(checkpoint=str(tmp_path), max_stepz=3)
        with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
            kind(config="nowhere.yaml")


def test_the_entry_point_names_the_model() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    line = config["options.entry_points"]["lmms_eval.models"]
    module, _, function = line.partition("=")[2].strip().partition(":")
    with installed() as kind:
        found = getattr(import_module(module), function)()
        assert found.model_id == "mathcanvas"
        path, _, name = found.chat_class_path.rpartition(".")
        assert getattr(import_module(path), name) is kind
        assert kind.is_simple is False


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that draws, two puzzles as records, and the answers of `predict` to them."""
    folder = tmp_path_factory.mktemp("bagel")
    drawing_checkpoint(folder / "checkpoint")
    generate_blockmoving(
        str(folder / "tasks"), num_tasks=2, seed=2, level=1, num_workers=0, progress=False
    )
    lines = [
        {
            "sample_index": n,
            "query_cot": f"<image> Puzzle {n}: which block moved?",
            "image": str(folder / "tasks" / f"task_{n}" / "composite.png"),
            "answer": "A",
        }
        for n in range(2)
    ]
    path = folder / "puzzles.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    backend = BagelBackend(
        str(folder / "checkpoint"),
        drawing=DrawingConfig(num_timesteps=2, text_scale=1.0),
        **BUDGET,
        **TRANSFORMS,
    )
    source = RecordInput(path=str(path), output=str(folder / "native.jsonl"), allow_any_path=True)
    predict(backend, [source], ReasoningFolders(), sampling=Sampling(**SAMPLING))
    return folder


def arguments(folder: Path) -> dict[str, Any]:
    """The model of `puzzles` as lmms-eval passes it: numbers, texts, and objects as text."""
    sizes = {
        name: json.dumps(
            {
                "max_image_size": one.max_image_size,
                "min_image_size": one.min_image_size,
                "image_stride": one.image_stride,
            }
        )
        for name, one in TRANSFORMS.items()
    }
    drawing = json.dumps({"num_timesteps": 2, "text_scale": 1.0})
    return {
        "checkpoint": str(folder / "checkpoint"),
        "mode": "interleaved",
        "drawing": drawing,
        **BUDGET,
        **sizes,
        **SAMPLING,
    }


def require_equal_answers(folder: Path, output: Path, task: str) -> None:
    """Texts and drawings of a task equal those of `predict`."""
    native = {
        one["sample_index"]: one["model_answer"] for one in read_lines(folder / "native.jsonl")
    }
    found = read_lines(output / f"{task}_answers.jsonl")
    assert {int(one["sample_index"]): one["model_answer"] for one in found} == native
    drawings = sorted((folder / "native").rglob("reasoning_image_*.png"))
    assert drawings
    for path in drawings:
        copy = output / f"{task}_answers" / path.relative_to(folder / "native")
        assert copy.read_bytes() == path.read_bytes()


def test_answers_equal_those_of_predict(puzzles: Path, tmp_path: Path) -> None:
    docs = []
    for line in read_lines(puzzles / "puzzles.jsonl"):
        with Image.open(line["image"]) as picture:
            text = line["query_cot"].removeprefix("<image> ")
            docs.append({"text": text, "images": [picture.copy()]})
    with installed() as kind:
        # The label of the native run is part of the seed of each request.
        model = kind(**arguments(puzzles), output=str(tmp_path), device="cpu")
        texts = model.generate_until(requests(model, "puzzles", docs))
    require_equal_answers(puzzles, tmp_path, "puzzles")
    assert texts == [one["model_answer"] for one in read_lines(puzzles / "native.jsonl")]


def test_drawings_as_json(puzzles: Path, tmp_path: Path) -> None:
    given = arguments(puzzles) | {"mode": "image", "output": str(tmp_path)}
    with installed() as kind:
        model = kind(**given, device="cpu")
        (text,) = model.generate_until(requests(model, "edit", [{"text": "A red cube."}]))
    (path,) = json.loads(text)["images"]
    with Image.open(path) as drawing:
        assert drawing.width > 0


TASK = """
task: puzzles
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: generate_until
test_split: test
doc_to_visual: !function local_utils.visual
doc_to_text: !function local_utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 7, until: ["."]}}
process_results: !function local_utils.results
metric_list:
  - {{metric: length, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"])]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["query_cot"].removeprefix("<image> ")

def results(doc, found):
    return {"length": len(found[0])}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_of_the_package_itself(puzzles: Path, tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from mathcanvas_lightning.integrations.lmms_eval import manifest

    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "puzzles.yaml").write_text(TASK.format(path=puzzles / "puzzles.jsonl"))
    (tmp_path / "tasks" / "local_utils.py").write_text(UTILS)
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # if it is not installed
    given = {**arguments(puzzles), "output": str(tmp_path / "out")}
    results = simple_evaluate(
        model="mathcanvas",
        model_args=",".join(f"{name}={value}" for name, value in given.items()),
        tasks=["puzzles"],
        device="cpu",
        task_manager=TaskManager(include_path=str(tmp_path / "tasks")),
    )
    require_equal_answers(puzzles, tmp_path / "out", "puzzles")
    native = [one["model_answer"] for one in read_lines(puzzles / "native.jsonl")]
    mean = sum(len(text.strip()) for text in native) / len(native)
    assert results["results"]["puzzles"]["length,none"] == pytest.approx(mean)
