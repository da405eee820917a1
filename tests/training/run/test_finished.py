"""A second fit in the folder of a finished run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.training.run.finished import check_unfinished, move_aside

LOOPS = {"fit_loop": {"epoch_progress": {"current": {"processed": 2}}}}


def check(changes: list[str], step: int = 120, steps: int = 120, epochs: int = -1) -> str | None:
    trainer: Any = SimpleNamespace(max_steps=steps, max_epochs=epochs)
    about = {"global_step": step, "loops": LOOPS}
    return check_unfinished(about, trainer, changes, Path("runs/a"))


@pytest.mark.parametrize(
    ("step", "steps", "epochs"), [(60, 120, -1), (60, -1, 3), (60, -1, -1), (0, 1, -1)]
)
def test_steps_are_left(step: int, steps: int, epochs: int) -> None:
    assert check(["model.optimizer.lr 1 -> 2"], step, steps, epochs) is None


@pytest.mark.parametrize(
    "changes",
    [[], ["trainer.ranks 2 -> 1"], ["data.packs_per_step 2 -> 1", "trainer.ranks 2 -> 1"]],
)
def test_finished_with_the_same_settings(changes: list[str]) -> None:
    remark = check(changes)
    assert remark is not None
    assert remark.startswith("runs/a is finished at step 120 (trainer.max_steps 120): nothing is")


@pytest.mark.parametrize(
    ("changes", "steps", "epochs", "reached"),
    [
        (["model.optimizer.lr 1 -> 2"], 120, -1, "step 120 (trainer.max_steps 120)"),
        (["trainer.max_steps 120 -> 10"], 10, -1, "step 120 (trainer.max_steps 10)"),
        (["data.packs_per_step 2 -> 4"], -1, 2, "step 120, epoch 2 (trainer.max_epochs 2)"),
    ],
)
def test_finished_with_other_settings(
    changes: list[str], steps: int, epochs: int, reached: str
) -> None:
    with pytest.raises(OutputError) as error:
        check(changes, steps=steps, epochs=epochs)
    text = str(error.value)
    assert f"found a run at {reached}, with other settings: {changes[0]}" in text
    for way in ("--name NAME", "--trainer.max_steps 240", "--auto_resume false"):
        assert way in text


def test_nothing_is_lost_by_starting_over(tmp_path: Path) -> None:
    assert move_aside(tmp_path / "absent") is None
    (tmp_path / "mine.txt").write_text("stays")
    for number in (1, 2):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "step1.ckpt").write_text(str(number))
        (tmp_path / "metrics.csv").write_text("step\n")
        assert move_aside(tmp_path) == tmp_path / f"earlier_{number}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "earlier_1",
        "earlier_2",
        "mine.txt",
    ]
    assert (tmp_path / "earlier_2" / "checkpoints" / "step1.ckpt").read_text() == "2"
