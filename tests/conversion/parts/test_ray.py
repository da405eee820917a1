"""A conversion as a Ray Data job on a local cluster of two workers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mathcanvas_lightning import convert_cot
from mathcanvas_lightning.conversion.parts import blocks
from mathcanvas_lightning.errors import ConfigError, WorkerError
from tests.conftest import folder_bytes, write_json
from tests.conversion.records import canvas_record, canvas_source


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = canvas_source(tmp_path / "in", 2)
    with pytest.raises(ConfigError, match=r"mathcanvas-lightning\[ray\]"):
        convert_cot(str(source), str(tmp_path / "out"), ray="local")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own code
def test_a_ray_job_equals_one_conversion_and_resumes(cluster: None, tmp_path: Path) -> None:
    count = 2 * blocks.BLOCK_RECORDS + 30
    records = [canvas_record(n) | {"level": n} for n in range(count)]
    records[300]["id"] = "m1"
    records[301]["solution_interleave"] = []
    records[400]["level"] = "hard"
    canvas_source(tmp_path / "in", 1)
    source = write_json(tmp_path / "in" / "x.json", records)
    options = {"split": "train=0.9,test=0.1", "progress": False}
    convert_cot(str(source), str(tmp_path / "one"), num_workers=0, **options)
    convert_cot(str(source), str(tmp_path / "ray"), part="1/3", num_workers=0, **options)
    report = convert_cot(str(source), str(tmp_path / "ray"), ray="local", **options)
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "one")
    assert report.rejects == {"duplicate_id": 1, "no_solution": 1}
    source.write_text("[{")
    with pytest.raises(WorkerError, match=r"part 1/8, InputError.*malformed JSON"):
        convert_cot(str(source), str(tmp_path / "bad"), source="mathcanvas", ray="local")
