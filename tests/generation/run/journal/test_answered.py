"""What makes a record be asked again: its pictures, its model, and nothing else."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.errors import InputError, OutputError
from mathcanvas_lightning.generation.backends.base import BackendError, EchoBackend
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.journal.folder import journal_folder
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS, png
from tests.generation.backends.test_identity import tick
from tests.generation.fakes import Dying, Failing, LastFirst
from tests.generation.runs import predict, read_lines, records, write_lines

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]


def source(folder: Path, some: list[dict[str, Any]], output: str = "out.jsonl") -> RecordInput:
    path = write_lines(folder / "in.jsonl", some)
    return RecordInput(path=str(path), output=str(folder / output))


def asked(one: RecordInput, **options: Any) -> list[str]:
    backend = LastFirst()
    predict(backend, [one], **options)
    return sorted(request.uid for request in backend.asked)


def numbers(one: RecordInput, name: str) -> int:
    path = journal_folder(one.output_path) / name
    return len(path.read_text().splitlines())


# Pictures


@pytest.fixture
def pictured(tmp_path: Path) -> RecordInput:
    """Two records with a picture file each."""
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png())
    some = [one | {"image": f"{name}.png"} for one, name in zip(records(2), "ab", strict=True)]
    return source(tmp_path, some)


def test_changed_pictures_are_asked_again(pictured: RecordInput, tmp_path: Path) -> None:
    assert len(asked(pictured)) == 2
    assert asked(pictured) == []
    (tmp_path / "b.png").write_bytes(png(colour="blue"))
    assert asked(pictured) == ["in:1"]
    assert asked(pictured) == []
    # Going back finds the first answer again.
    (tmp_path / "b.png").write_bytes(png())
    assert asked(pictured) == []


def test_the_same_pictures_with_other_times_are_not_asked_again(
    pictured: RecordInput, tmp_path: Path
) -> None:
    asked(pictured)
    for name in "ab":
        os.utime(tmp_path / f"{name}.png", (1, 1))
    assert asked(pictured) == []
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    moved = RecordInput(path=str(copy / "in.jsonl"), output=str(copy / "out.jsonl"))
    assert asked(moved) == []


def test_a_failure_after_a_change_hides_the_old_answer(
    pictured: RecordInput, tmp_path: Path
) -> None:
    asked(pictured)
    (tmp_path / "b.png").write_bytes(png(colour="blue"))
    report = predict(Failing("1", name="last-first"), [pictured])
    assert report.num_failed == 1
    assert read_lines(pictured.output_path)[1]["model_answer"] is None
    (tmp_path / "b.png").write_bytes(b"broken")
    assert predict(LastFirst(), [pictured]).num_failed == 1


def test_changed_pictures_of_examples_are_another_prompt(tmp_path: Path) -> None:
    (tmp_path / "e.png").write_bytes(png())
    example = {"query": "One?", "answer": "1", "image": "e.png"}
    examples = str(write_lines(tmp_path / "examples.jsonl", [example]))
    one = source(tmp_path, records(2))
    asked(one, prompt=ChatPrompt(few_shot=examples))
    assert asked(one, prompt=ChatPrompt(few_shot=examples)) == []
    (tmp_path / "e.png").write_bytes(png(colour="blue"))
    with pytest.raises(OutputError, match="another prompt"):
        asked(one, prompt=ChatPrompt(few_shot=examples))


# Models


@pytest.mark.parametrize("kind", [VLLMBackend, BagelBackend])
def test_new_weights_under_the_same_path_are_noticed(kind: Any, tmp_path: Path) -> None:
    model = tmp_path / "exported"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = model / "model.safetensors"
    weights.write_bytes(b"step 100")
    first = kind(str(model)).settings
    assert kind(str(model)).settings == first
    for change in (b"step 200", b"step 2000"):
        weights.write_bytes(change)
        tick(weights)
        assert kind(str(model)).settings != first
    weights.write_bytes(b"step 100")
    tick(weights)
    assert kind(str(model)).settings == first
    (model / "config.json").write_text('{"a": 1}')
    assert kind(str(model)).settings != first


def test_another_adapter_is_noticed(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter_model.safetensors"
    adapter.write_bytes(b"1")
    first = VLLMBackend("a/b", lora_path=str(tmp_path)).settings
    adapter.write_bytes(b"2")
    tick(adapter)
    assert VLLMBackend("a/b", lora_path=str(tmp_path)).settings != first


class Served(EchoBackend):
    """A server whose model is known only after the start."""

    def __init__(self, base_url: str) -> None:
        super().__init__("")
        self.base_url = base_url

    @property
    def settings(self) -> dict[str, Any]:
        return {"base_url": self.base_url}


def test_another_server_is_noticed_even_if_all_is_answered(tmp_path: Path) -> None:
    one = source(tmp_path, records(2))
    predict(Served("http://a/v1"), [one])
    with pytest.raises(OutputError, match=r"http://a/v1.*http://b/v1"):
        predict(Served("http://b/v1"), [one])
    with pytest.raises(OutputError, match=r"sampling.seed"):
        predict(Served("http://a/v1"), [one], sampling=Sampling(seed=3))


def test_journals_of_older_versions_are_resumed(
    pictured: RecordInput, caplog: pytest.LogCaptureFixture
) -> None:
    asked(pictured)
    path = journal_folder(pictured.output_path) / "rank0.jsonl"
    new = ("check", "stamp", "pictures", "steps")
    lines = [{k: v for k, v in one.items() if k not in new} for one in read_lines(path)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    caplog.clear()
    assert asked(pictured) == []
    assert caplog.text.count("lines of an older version") == 1
    assert all(one["model_answer"] for one in read_lines(pictured.output_path))


# Reruns


def test_a_rerun_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    one = source(tmp_path, records(10))
    asked(one)
    with pytest.raises(BackendError):
        predict(Dying(after=3, max_pending=1), [one], rerun=True)
    assert len(asked(one, rerun=True)) == 7
    assert numbers(one, "replaced/1/rank0.jsonl") == 10
    # That rerun has reached its end: the next one starts over.
    assert len(asked(one, rerun=True)) == 10
    assert numbers(one, "replaced/2/rank0.jsonl") == 10
    assert numbers(one, "replaced/1/rank0.jsonl") == 10


@pytest.mark.parametrize(
    "change", [{"sampling": Sampling(seed=5)}, {"prompt": ChatPrompt(system_prompt="Be brief.")}]
)
def test_an_interrupted_rerun_with_other_settings_starts_over(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    one = source(tmp_path, records(5))
    with pytest.raises(BackendError):
        predict(Dying(after=2, max_pending=1), [one], rerun=True)
    assert len(asked(one, rerun=True, **change)) == 5
    assert numbers(one, "replaced/1/rank0.jsonl") == 2


# Existing outputs


def test_an_output_without_a_journal_is_not_overwritten(tmp_path: Path) -> None:
    one = source(tmp_path, records(2))
    one.output_path.write_text('{"my": "thesis"}\n')
    for options in ({}, {"rerun": True}, {"existing_output": "seed"}):
        with pytest.raises(OutputError, match="existing_output"):
            asked(one, **options)
        assert "thesis" in one.output_path.read_text()
    assert len(asked(one, existing_output="replace")) == 2


def test_a_lost_journal_is_seeded_from_the_output(tmp_path: Path) -> None:
    one = source(tmp_path, records(4))
    predict(Failing("3"), [one], sampling=Sampling(n=2))
    shutil.rmtree(journal_folder(one.output_path))
    some = records(4)
    some[1]["query_cot"] = "Another question?"
    write_lines(Path(one.path), some)
    options: dict[str, Any] = {"sampling": Sampling(n=2), "existing_output": "seed"}
    assert asked(one, **options) == ["in:1", "in:3"]
    assert asked(one, **options) == []
    answers = [record["model_answer"] for record in read_lines(one.output_path)]
    assert answers[0] == ["What is 0 + 1?"] * 2
    assert answers[1] == ["re: Another question?"] * 2


def test_a_run_without_requests_owns_its_output(tmp_path: Path) -> None:
    one = source(tmp_path, records(2, model_answer="old"))
    for _ in range(2):
        assert asked(one) == []


# Faults


def test_records_with_faults_are_skipped_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    some: list[Any] = records(7, image="a.png")
    some[1]["image"] = "gone.png"
    some[2]["query_cot"] = " "
    some[3]["sample_index"] = 0
    some[4] = ["not an object"]
    del some[5]["sample_index"]
    one = source(tmp_path, some)
    with pytest.raises(InputError, match="on_fault"):
        predict(LastFirst(), [one])
    backend = LastFirst()
    report = predict(backend, [one], on_fault="skip")
    assert [request.uid for request in backend.asked] == ["in:0", "in:6"]
    assert report.num_failed == 5
    assert report.inputs[0].failures["picture_missing"] == 1
    written = read_lines(one.output_path)
    assert [bool(record.get("model_answer")) for record in written] == [
        index in (0, 6) for index in range(7)
    ]
    assert "gone.png" in written[1]["model_answer_error"]
    assert "duplicate index" in written[3]["model_answer_error"]
    assert asked(one, on_fault="skip") == []


def test_faults_of_the_whole_input_stop_the_run_in_any_case(tmp_path: Path) -> None:
    for some in (records(3, image="gone.png"), [{"id": 1, "q": "?"}]):
        with pytest.raises(InputError):
            predict(LastFirst(), [source(tmp_path, some)], on_fault="skip")


def test_pictures_outside_the_folder_are_a_fault_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(png())
    (tmp_path / "data").mkdir()
    some = records(2)
    some[1]["image"] = "../private.png"
    one = source(tmp_path / "data", some)
    with pytest.raises(InputError, match="allow_any_path"):
        asked(one)
    assert asked(one, on_fault="skip") == ["in:0"]
    allowed = RecordInput(path=one.path, output=one.output, allow_any_path=True)
    assert asked(allowed) == ["in:1"]


def test_the_text_of_an_empty_list_is_an_answer(tmp_path: Path) -> None:
    some = [
        one | {"model_answer": said}
        for one, said in zip(records(4), ("[]", "[5]", "", []), strict=True)
    ]
    one = source(tmp_path, some)
    assert asked(one) == ["in:2", "in:3"]
    assert [record["model_answer"] for record in read_lines(one.output_path)][:2] == ["[]", "[5]"]


def test_nan_in_a_record_is_null_in_the_output(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"sample_index": 1, "query_cot": "?", "level": NaN, "x": [Infinity]}\n')
    one = RecordInput(path=str(path), output=str(tmp_path / "out.json"))
    predict(LastFirst(), [one])
    (written,) = json.loads(one.output_path.read_text(), parse_constant=pytest.fail)
    assert written["level"] is None
    assert written["x"] == [None]


# Drawings


def test_drawings_are_kept_without_folders(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    one = source(tmp_path, records(1, image="a.png"))
    predict(EchoBackend(), [one])  # it "draws" the picture of the question
    folder = journal_folder(one.output_path)
    (line,) = read_lines(folder / "rank0.jsonl")
    drawing, text = line["steps"][0]
    assert (folder / drawing["drawing"]).read_bytes() == png()
    assert text == {"text": "What is 0 + 1?"}
