"""Whole predict runs without a model: nothing lost, nothing asked twice, failures reported."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from mathcanvas_lightning.generation.api import generate_responses
from mathcanvas_lightning.generation.backends.base import BackendError, EchoBackend
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt
from mathcanvas_lightning.generation.requests import Message, Sampling
from mathcanvas_lightning.generation.run.batching import FixedSize
from mathcanvas_lightning.generation.run.journal import journal_folder, read_journal
from mathcanvas_lightning.generation.run.module import ResponseCallback
from mathcanvas_lightning.generation.run.monitor import GenerationProgress
from mathcanvas_lightning.generation.run.post_processors import remove_thinking
from mathcanvas_lightning.generation.run.writer import ResponseWriter
from mathcanvas_lightning.records.pictures import Picture
from mathcanvas_lightning.records.record import Record, RecordInput
from tests.conftest import ROOT, TRAINER_WARNINGS, png
from tests.generation.fakes import Dying, Failing, LastFirst
from tests.generation.runs import (
    command,
    predict,
    read_lines,
    records,
    run_command,
    run_file,
    write_lines,
)
from tests.ranks import reserved_port
from tests.warm import WARM_CHILDREN, WarmProcess, WarmPython

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]


@pytest.fixture
def source(tmp_path: Path) -> RecordInput:
    """Twenty questions with an output."""
    path = write_lines(tmp_path / "questions.jsonl", records(20, extra={"kept": [1, None]}))
    return RecordInput(path=str(path), output=str(tmp_path / "answers.jsonl"))


def kept_in(source: RecordInput | Path) -> set[str]:
    """Indexes of the records with an answer in the journal."""
    output = source if isinstance(source, Path) else source.output_path
    entries = read_journal(journal_folder(output))
    return {uid for (uid, _), entry in entries.items() if entry.failure is None}


def answers(source: RecordInput) -> dict[Any, Any]:
    return {one["sample_index"]: one["model_answer"] for one in read_lines(source.output_path)}


def test_answers_are_written_to_their_records_in_order(source: RecordInput) -> None:
    report = predict(LastFirst(), [source])
    written = read_lines(source.output_path)
    wanted = [
        one | {"model_answer": f"re: {one['query_cot']}"} for one in read_lines(Path(source.path))
    ]
    assert written == wanted
    (one,) = report.inputs
    assert (one.num_records, one.num_answered, report.num_failed) == (20, 20, 0)
    assert (one.prompt_tokens, one.completion_tokens) == (20, 40)
    assert report.num_asked == 20


def test_answered_records_are_not_asked_again(source: RecordInput) -> None:
    predict(LastFirst(), [source])
    first = source.output_path.read_bytes()
    source.output_path.unlink()
    idle = LastFirst()
    report = predict(idle, [source])
    assert idle.asked == []
    assert idle.starts == []
    assert report.num_asked == 0
    assert source.output_path.read_bytes() == first


def test_only_new_and_changed_records_are_asked(source: RecordInput) -> None:
    predict(LastFirst(), [source])
    some = records(23, extra={"kept": [1, None]})
    some[3]["query_cot"] = "Another question?"
    some[5]["extra"] = "this changes no question"
    write_lines(Path(source.path), [some[22], *some[:22]])
    backend = LastFirst()
    predict(backend, [source])
    assert {one.uid for one in backend.asked} == {f"questions:{n}" for n in (3, 20, 21, 22)}
    assert answers(source)[3] == "re: Another question?"
    assert list(answers(source)) == [22, *range(22)]


def test_resumes_after_an_error(source: RecordInput) -> None:
    with pytest.raises(BackendError):
        predict(Dying(after=7, max_pending=3), [source])
    assert not source.output_path.exists()
    done = kept_in(source)
    assert len(done) == 7
    backend = LastFirst()
    predict(backend, [source])
    assert {one.uid for one in backend.asked}.isdisjoint(done)
    assert len(backend.asked) == 13
    assert len(answers(source)) == 20


def test_failures_are_reported_and_asked_again(source: RecordInput, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    report = predict(Failing("7", str(flag)), [source])
    assert report.inputs[0].failures == Counter(timeout=2)
    written = read_lines(source.output_path)
    for n in (7, 17):
        assert written[n]["model_answer"] is None
        assert written[n]["model_answer_error"] == "timeout: after 3 tries"
    assert "model_answer_error" not in written[8]
    flag.unlink()
    again = predict(Failing("7", str(flag)), [source])
    assert (again.num_asked, again.num_failed) == (2, 0)
    written = read_lines(source.output_path)
    assert all(one["model_answer"] and "model_answer_error" not in one for one in written)


def test_rerun_asks_all_again_and_moves_old_answers(source: RecordInput) -> None:
    predict(LastFirst(), [source])
    backend = LastFirst()
    predict(backend, [source], sampling=Sampling(max_tokens=7), rerun=True)
    assert len(backend.asked) == 20
    aside = journal_folder(source.output_path) / "replaced" / "1" / "rank0.jsonl"
    assert len(aside.read_text().splitlines()) == 20
    # ... but not if an input has faults.
    Path(source.path).write_text('{"sample_index": 1}\n')
    with pytest.raises(InputError):
        predict(LastFirst(), [source], rerun=True)
    assert len(kept_in(source)) == 20


def test_a_rerun_is_resumed_without_the_option(tmp_path: Path) -> None:
    some = records(6, model_answer="old")
    source = RecordInput(
        path=str(write_lines(tmp_path / "in.jsonl", some)), output=str(tmp_path / "out.jsonl")
    )
    with pytest.raises(BackendError):
        predict(Dying(after=2, max_pending=1), [source], rerun=True)
    backend = LastFirst()
    predict(backend, [source])
    assert len(backend.asked) == 4
    assert all(text.startswith("re: ") for text in answers(source).values())


def test_a_rerun_that_fails_is_asked_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    some = records(3, model_answer="old")
    source = RecordInput(
        path=str(write_lines(tmp_path / "in.jsonl", some)), output=str(tmp_path / "out.jsonl")
    )
    assert predict(Failing("1", str(flag)), [source], rerun=True).num_failed == 1
    flag.unlink()
    assert predict(Failing("1", str(flag)), [source]).num_failed == 0
    assert "old" not in answers(source).values()


def test_a_rerun_keeps_filtered_records(tmp_path: Path) -> None:
    some = records(4, model_answer="old")
    source = RecordInput(
        path=str(write_lines(tmp_path / "in.jsonl", some)), output=str(tmp_path / "out.jsonl")
    )
    predict(LastFirst(), [source], rerun=True, filters=[is_even])
    assert [text == "old" for text in answers(source).values()] == [False, True, False, True]


def test_a_rerun_of_two_outputs_starts_with_both_or_none(tmp_path: Path) -> None:
    inputs = [
        RecordInput(
            path=str(write_lines(tmp_path / f"{name}.jsonl", records(2))),
            output=str(tmp_path / f"{name}_out.jsonl"),
        )
        for name in "ab"
    ]
    predict(LastFirst(), inputs)
    held = FileLock(journal_folder(inputs[1].output_path) / "lock")
    with held, pytest.raises(OutputError, match="another run"):
        predict(LastFirst(), inputs, rerun=True)
    assert [len(kept_in(one)) for one in inputs] == [2, 2]


def test_swapped_outputs(tmp_path: Path) -> None:
    paths = [str(write_lines(tmp_path / f"{name}.jsonl", records(2))) for name in "ab"]
    outputs = [str(tmp_path / f"{name}_out.jsonl") for name in "ab"]
    for order in (outputs[::-1], outputs):
        inputs = [RecordInput(path=p, output=o) for p, o in zip(paths, order, strict=True)]
        report = predict(LastFirst(), inputs)
        assert report.num_asked == 4
        assert all(answers(one)[n] for one in inputs for n in range(2))


def test_records_beyond_a_limit_are_reported(source: RecordInput) -> None:
    limits = {"limit_predict_batches": 1}
    report = predict(LastFirst(), [source], trainer=limits, batching=FixedSize(5))
    assert report.inputs[0].failures == Counter(not_asked=15)
    assert report.num_asked == 5
    assert "not_asked" in read_lines(source.output_path)[9]["model_answer_error"]
    assert predict(LastFirst(), [source]).num_asked == 15


def test_changes_of_prompt_fields_are_noticed(tmp_path: Path) -> None:
    some = records(4, options=["1", "2"], note="a")
    path = write_lines(tmp_path / "in.jsonl", some)
    source = RecordInput(path=str(path), output=str(tmp_path / "out.jsonl"))
    prompt = ChatPrompt(options_field="options")
    predict(LastFirst(), [source], prompt=prompt)
    some[0] |= {"options": ["3", "4"]}
    some[1] |= {"note": "b"}
    write_lines(path, some)
    backend = LastFirst()
    predict(backend, [source], prompt=prompt)
    assert [one.uid for one in backend.asked] == ["in:0"]
    assert "(A) 3" in answers(source)[0]
    # A prompt without `fields` may use all fields.
    predict(LastFirst(), [source], prompt=Terse(), rerun=True)
    some[2] |= {"note": "c"}
    write_lines(path, some)
    backend = LastFirst()
    predict(backend, [source], prompt=Terse())
    assert [one.uid for one in backend.asked] == ["in:2"]


def test_an_input_that_changes_during_the_run(source: RecordInput) -> None:
    class Editor(LastFirst):
        def start(self, **where: Any) -> None:
            super().start(**where)
            path = Path(source.path)
            path.write_text(path.read_text().replace("What", "Whom"))

    some = records(2000, filler="x" * 200)  # more than the read buffer
    write_lines(Path(source.path), some)
    with pytest.raises(InputError, match="other records"):
        predict(Editor(max_pending=2), [source], batching=FixedSize(1))


def test_a_prompt_error_fails_only_its_record(source: RecordInput) -> None:
    def prompt(record: Record, pictures: Any) -> tuple[Message, ...]:
        if record.index == 2:
            raise InputError("record 2", found="this", wanted="that", remedy="Do.")
        return (Message(role="user", parts=(record.query,)),)

    for _ in range(2):
        report = predict(LastFirst(), [source], prompt=prompt)
        assert report.inputs[0].failures == Counter(prompt=1)


def test_a_prompt_that_fails_for_all_records_ends_the_run(source: RecordInput) -> None:
    backend = LastFirst()
    with pytest.raises(InputError, match=r"first 10 records.*absent"):
        predict(backend, [source], prompt=ChatPrompt(template="{absent} {query}"))
    assert backend.starts == []


def test_falsy_responses_are_responses(tmp_path: Path) -> None:
    some = records(3)
    for record, response in zip(some, (0, False, None), strict=True):
        record["model_answer"] = response
    source = RecordInput(
        path=str(write_lines(tmp_path / "in.jsonl", some)), output=str(tmp_path / "out.jsonl")
    )
    assert predict(LastFirst(), [source]).num_asked == 1
    assert list(answers(source).values())[:2] == [0, False]


def test_an_answer_removes_an_old_error(tmp_path: Path) -> None:
    some = records(2, model_answer=None, model_answer_error="timeout: once")
    source = RecordInput(
        path=str(write_lines(tmp_path / "in.jsonl", some)), output=str(tmp_path / "out.jsonl")
    )
    predict(LastFirst(), [source])
    assert all("model_answer_error" not in one for one in read_lines(source.output_path))


def test_other_callbacks_run_before_the_journal(source: RecordInput) -> None:
    class Refusing(ResponseCallback):
        def on_responses(self, trainer: Any, pl_module: Any, exchanges: Any) -> None:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        predict(LastFirst(), [source], Refusing())
    assert not kept_in(source)


def test_a_journal_that_cannot_be_closed_hides_no_error(
    source: RecordInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    backend = LastFirst()
    with pytest.raises(OutputError, match=r"rank0\.jsonl: .*No space"):
        predict(backend, [source], writer=ResponseWriter(sync_every_s=0))
    assert backend.num_closed == 1
    monkeypatch.undo()
    assert predict(LastFirst(), [source]).num_failed == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampling": Sampling(temperature=0.7)}, "0.7"),
        ({"prompt": ChatPrompt(system_prompt="Be brief.")}, "another prompt"),
    ],
)
def test_answers_with_other_settings_are_not_mixed(
    source: RecordInput, changed: dict[str, Any], message: str
) -> None:
    predict(LastFirst(), [source])
    write_lines(Path(source.path), records(21, extra={"kept": [1, None]}))
    with pytest.raises(OutputError, match=message):
        predict(LastFirst(), [source], **changed)
    assert len(kept_in(source)) == 20


def test_answers_of_another_model_are_not_mixed(source: RecordInput) -> None:
    predict(EchoBackend("one"), [source])
    for backend in (EchoBackend("two"), Renamed("one")):
        with pytest.raises(OutputError, match=r"one.*/b|one.*two"):
            predict(backend, [source])  # even if all records are answered
    assert predict(EchoBackend("one"), [source]).num_asked == 0


def test_responses_in_the_input_are_kept(tmp_path: Path) -> None:
    some = records(4)
    some[1]["model_answer"] = "old"
    some[2]["model_answer"] = ""
    source = RecordInput(
        path=str(write_lines(tmp_path / "in.jsonl", some)), output=str(tmp_path / "out.jsonl")
    )
    backend = LastFirst()
    predict(backend, [source])
    assert {one.uid for one in backend.asked} == {"in:0", "in:2", "in:3"}
    assert answers(source)[1] == "old"
    predict(LastFirst(), [source], rerun=True)
    assert answers(source)[1].startswith("re: ")


def test_two_inputs_in_one_run(source: RecordInput, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    some = records(3, image="red.png")
    pictures = RecordInput(
        path=str(write_lines(tmp_path / "pictures.jsonl", some)),
        output=str(tmp_path / "seen.jsonl"),
    )
    backend = LastFirst()
    report = predict(backend, [pictures, source])
    assert [one.num_answered for one in report.inputs] == [3, 20]
    assert [len(one.pictures) for one in backend.asked] == [1] * 3 + [0] * 20
    assert len(answers(pictures)) == 3
    assert len(answers(source)) == 20


def test_a_broken_picture_fails_only_its_record(tmp_path: Path) -> None:
    (tmp_path / "whole.png").write_bytes(png())
    (tmp_path / "cut.png").write_bytes(png()[:40])
    some = records(4, image="whole.png")
    some[2]["image"] = "cut.png"
    source = RecordInput(path=str(write_lines(tmp_path / "in.jsonl", some)))
    backend = LastFirst()
    report = predict(backend, [source])
    assert {one.uid for one in backend.asked} == {"in:0", "in:1", "in:3"}
    assert sum(report.inputs[0].failures.values()) == 1
    assert "cut.png" in read_lines(source.output_path)[2]["model_answer_error"]


def test_all_faults_are_reported_before_the_start(tmp_path: Path) -> None:
    some: list[Any] = records(6)
    some[1]["sample_index"] = 0
    some[2]["query_cot"] = None
    some[3]["image"] = "absent.png"
    some[4] = ["no object"]
    source = RecordInput(path=str(write_lines(tmp_path / "in.jsonl", some)))
    backend = LastFirst()
    with pytest.raises(InputError) as error:
        predict(backend, [source])
    assert backend.starts == []
    for word in ("absent.png", "query_cot", "in.jsonl"):
        assert word in str(error.value)


def test_one_run_per_output(source: RecordInput) -> None:
    folder = journal_folder(source.output_path)
    folder.mkdir()
    with FileLock(folder / "lock"), pytest.raises(OutputError, match="another run"):
        predict(LastFirst(), [source])
    assert predict(LastFirst(), [source]).num_failed == 0


def test_no_input() -> None:
    with pytest.raises(ConfigError, match="inputs"):
        predict(LastFirst(), [])


def test_samples_and_post_processing(source: RecordInput) -> None:
    writer = ResponseWriter([remove_thinking, Shout()])
    prompt = ChatPrompt(template="<think>{query}</think> fine")
    predict(LastFirst(), [source], sampling=Sampling(n=2), prompt=prompt, writer=writer)
    assert answers(source)[0] == ["FINE", "FINE"]
    # The journal has the original text, so other post-processors need no new answers.
    idle = LastFirst()
    predict(idle, [source], sampling=Sampling(n=2), prompt=prompt)
    assert idle.asked == []
    assert "<think>" in answers(source)[0][0]


class Renamed(EchoBackend):
    """Has a different path."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"model_path": "/b"}


class Shout:
    """A custom post-processor."""

    def __call__(self, text: str) -> str:
        return text.removeprefix("re:").strip().upper()


class Terse:
    """A custom prompt builder."""

    def __call__(self, record: Record, pictures: tuple[Picture, ...]) -> tuple[Message, ...]:
        return (Message(role="user", parts=(record.query[:4], *pictures)),)


def is_even(record):  # type: ignore[no-untyped-def]
    """A custom filter: a function without annotations is enough."""
    return record.index % 2 == 0


class Pairs:
    """A custom batching."""

    def __call__(self, items: Any) -> Any:
        for item in items:
            yield [item, *(following for following in [next(items, None)] if following)]


class Listing(ResponseCallback):
    """A custom callback."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_responses(self, trainer: Any, pl_module: Any, exchanges: Any) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{one.response.uid}\n" for one in exchanges)


@pytest.mark.slow
def test_everything_can_be_plugged_in_from_yaml(tmp_path: Path, warm: WarmPython) -> None:
    here = "tests.generation.run.test_predict"
    source = write_lines(tmp_path / "questions.jsonl", records(10))
    config = run_file(
        tmp_path,
        {"class_path": "tests.generation.fakes.LastFirst", "init_args": {"max_pending": 3}},
        source,
        writer={
            "class_path": "mathcanvas_lightning.ResponseWriter",
            "init_args": {"post_processors": [{"class_path": f"{here}.Shout"}]},
        },
        progress={"class_path": "mathcanvas_lightning.generation.run.monitor.GenerationProgress"},
    )
    words = [
        f"--data.init_args.prompt={here}.Terse",
        f"--data.init_args.filters=[{here}.is_even]",
        f"--data.init_args.batching={here}.Pairs",
        "--trainer.callbacks="
        + json.dumps(
            [{"class_path": f"{here}.Listing", "init_args": {"path": f"{tmp_path}/uids"}}]
        ),
        "--model.init_args.sampling.max_tokens=5",
    ]
    done = run_command(warm, config, *words)
    assert done.returncode == 0, done.stderr
    written = {
        one["sample_index"]: one["model_answer"] for one in read_lines(tmp_path / "answers.jsonl")
    }
    assert written == {n: "WHAT" if n % 2 == 0 else None for n in range(10)}
    uids = (tmp_path / "uids").read_text().split()
    assert sorted(uids) == [f"questions:{n}" for n in range(0, 10, 2)]


def count_to(path: str) -> Any:
    """A custom reader: the path is the number of records."""
    return iter(records(int(Path(path).stem)))


@pytest.mark.slow
def test_a_custom_reader_from_yaml(tmp_path: Path, warm: WarmPython) -> None:
    config = run_file(
        tmp_path, {"class_path": "mathcanvas_lightning.EchoBackend"}, tmp_path / "6.number"
    )
    reader = "tests.generation.run.test_predict.count_to"
    one = f"{{path: {tmp_path}/6.number, output: null, reader: {reader}}}"
    done = run_command(warm, config, f"--data.init_args.inputs=[{one}]")
    assert done.returncode == 0, done.stderr
    written = read_lines(tmp_path / "6_answers.jsonl")
    assert [one["model_answer"] for one in written] == [f"What is {n} + 1?" for n in range(6)]


@pytest.mark.slow
def test_failures_change_the_exit_status(tmp_path: Path, warm: WarmPython) -> None:
    source = write_lines(tmp_path / "questions.jsonl", records(12))
    backend = {"class_path": "tests.generation.fakes.Failing", "init_args": {"word": "1"}}
    done = run_command(warm, run_file(tmp_path, backend, source))
    assert done.returncode == 3, done.stderr
    assert "timeout, 3 of" in done.stdout
    config = run_file(tmp_path, backend, tmp_path / "absent.jsonl")
    done = run_command(warm, config)
    assert done.returncode == 1
    assert "absent.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


AT_ONCE = "--model.init_args.backend.init_args.seconds=0"


def slow_run(folder: Path, num: int, **sections: Any) -> Path:
    """The YAML of a run that takes 0.03 s for each of so many records."""
    source = write_lines(folder / "questions.jsonl", records(num))
    backend = {
        "class_path": "tests.generation.fakes.Logging",
        "init_args": {"folder": str(folder), "seconds": 0.03, "max_pending": 4},
    }
    return run_file(folder, backend, source, **sections)


def asked(folder: Path) -> list[str]:
    return [uid for path in folder.glob("asked*.txt") for uid in path.read_text().split()]


def wait_for_lines(folder: Path, num: int, process: WarmProcess) -> None:
    """Waits until a run has kept that many answers."""
    files = folder.glob
    process.wait_until(
        lambda: sum(p.read_bytes().count(b"\n") for p in files("*.journal/rank*")) >= num
    )


@pytest.mark.slow
def test_killed_again_and_again_in_the_middle(tmp_path: Path, warm: WarmPython) -> None:
    config = slow_run(tmp_path, 400)
    times_asked: dict[str, int] = {}  # of the kept records, until then
    for how, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = warm.start(command(config)[1:], cwd=ROOT)
        wait_for_lines(tmp_path, len(times_asked) + 8, process)
        os.kill(process.pid, how)
        done = process.wait(240)
        assert done.returncode == status
        assert ("run the same command again" in done.stderr) == (how != signal.SIGKILL)
        assert not (tmp_path / "answers.jsonl").exists()
        kept = kept_in(tmp_path / "answers.jsonl")
        assert kept >= times_asked.keys()
        assert len(kept) >= len(times_asked) + 8
        counts = Counter(asked(tmp_path))
        times_asked = {uid: counts[uid] for uid in kept} | times_asked
    assert run_command(warm, config, AT_ONCE).returncode == 0
    written = read_lines(tmp_path / "answers.jsonl")
    assert [one["model_answer"] for one in written] == [f"re: What is {n} + 1?" for n in range(400)]
    counts = Counter(asked(tmp_path))
    assert len(counts) == 400
    assert {uid: counts[uid] for uid in times_asked} == times_asked
    assert counts.total() <= 400 + 3 * 4  # requests that were in flight


RANKS = {"devices": 2, "strategy": "ddp"}


def of_ranks() -> dict[str, str]:
    """The environment of a run on several ranks, which start warm."""
    return os.environ | {WARM_CHILDREN: "1", "MASTER_PORT": str(reserved_port())}


@pytest.mark.slow
def test_ranks_share_the_records(tmp_path: Path, warm: WarmPython) -> None:
    config = slow_run(tmp_path, 31, trainer=RANKS)
    done = run_command(warm, config, env=of_ranks())
    assert done.returncode == 0, done.stderr
    parts = [(tmp_path / f"asked{rank}.txt").read_text().split() for rank in (0, 1)]
    assert (len(parts[0]), len(parts[1])) == (16, 15)
    assert {*parts[0], *parts[1]} == {f"questions:{n}" for n in range(31)}
    journal = tmp_path / "answers.jsonl.journal"
    assert {p.name for p in journal.glob("rank*.jsonl")} == {"rank0.jsonl", "rank1.jsonl"}
    written = read_lines(tmp_path / "answers.jsonl")
    assert [one["sample_index"] for one in written] == list(range(31))
    assert all(one["model_answer"] for one in written)
    assert done.stdout.count("31 asked") == 1


def end_first_rank(number: int, config: Path, folder: Path, warm: WarmPython) -> None:
    """Sends a signal to the first of two ranks at work; both end."""
    process = warm.start(command(config)[1:], cwd=ROOT, env=of_ranks())
    wait_for_lines(folder, 12, process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    process.wait(240)
    assert children
    _, alive = psutil.wait_procs(children, timeout=240)
    assert not alive


@pytest.mark.slow
def test_ranks_end_together_and_one_rank_resumes(tmp_path: Path, warm: WarmPython) -> None:
    config = slow_run(tmp_path, 400, trainer=RANKS)
    end_first_rank(signal.SIGTERM, config, tmp_path, warm)
    kept = kept_in(tmp_path / "answers.jsonl")
    before = len(asked(tmp_path))
    words = ["--trainer.devices=1", "--trainer.strategy=auto"]
    assert run_command(warm, config, *words, AT_ONCE).returncode == 0
    assert len(asked(tmp_path)) - before == 400 - len(kept)
    assert all(one["model_answer"] for one in read_lines(tmp_path / "answers.jsonl"))


@pytest.mark.slow
def test_child_ranks_end_with_their_parent(tmp_path: Path, warm: WarmPython) -> None:
    end_first_rank(signal.SIGKILL, slow_run(tmp_path, 400, trainer=RANKS), tmp_path, warm)


@pytest.mark.slow
def test_the_tool_and_the_command_write_the_same(tmp_path: Path, warm: WarmPython) -> None:
    (tmp_path / "red.png").write_bytes(png())
    texts = write_lines(tmp_path / "texts.jsonl", records(5))
    pictures = tmp_path / "pictures.json"
    pictures.write_text(json.dumps(records(4, image="red.png")))
    report = generate_responses(
        backend="echo",
        multimodal_input=str(pictures),
        multimodal_output=str(tmp_path / "seen.json"),
        text_only_input=str(texts),
        text_only_output=str(tmp_path / "read.jsonl"),
    )
    assert report is not None
    assert [one.num_answered for one in report.inputs] == [4, 5]
    config = run_file(tmp_path, {"class_path": "mathcanvas_lightning.EchoBackend"}, texts)
    assert run_command(warm, config).returncode == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "read.jsonl").read_bytes()
    assert [one["model_answer"] for one in json.loads((tmp_path / "seen.json").read_text())] == [
        f"What is {n} + 1?" for n in range(4)
    ]


def test_progress_is_counted(source: RecordInput, monkeypatch: pytest.MonkeyPatch) -> None:
    from mathcanvas_lightning.generation.run import monitor

    updates: list[tuple[int, str]] = []
    totals: list[int | None] = []

    class Bar:
        def __init__(self, description: str, total: int | None, *, show: bool) -> None:
            totals.append(total)

        def __enter__(self) -> Any:
            return lambda count, remark: updates.append((count, remark))

        def __exit__(self, *args: object) -> None: ...

    monkeypatch.setattr(monitor, "progress_bar", Bar)
    predict(Failing("19"), [source], GenerationProgress(), filters=[is_even])
    predict(Failing("19"), [source], GenerationProgress())
    assert totals == [10, 10]
    assert sum(count for count, _ in updates) == 20
    assert updates[-1][1].endswith("tokens/s, 1 failed")
