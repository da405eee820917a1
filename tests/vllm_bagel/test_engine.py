"""vLLM writes what the reference and the native generator write, token by token."""

import json
from typing import Any

import pytest

from mathcanvas_lightning.vllm_bagel.blocks import ImageBlock
from tests.conftest import golden_folder, run_python
from tests.generation.engine import engine_lock, real_engine
from tests.vllm_bagel.contexts import Written, cases, golden_texts, native_cases
from tests.vllm_bagel.plugin import registered_plugin

__all__ = ["engine_lock", "registered_plugin"]
pytestmark = [
    *real_engine,
    pytest.mark.usefixtures("registered_plugin"),
    pytest.mark.skipif(not (golden_folder() / "tiny_bagel").is_dir(), reason="no golden files"),
]
CLOSE = 1e-4


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, engine_lock: None, registered_plugin: None
) -> dict[str, Any]:
    """The results of `engine_runs.py`: one engine, run in several ways."""
    out = tmp_path_factory.mktemp("runs") / "runs.json"
    ended = run_python("-m", "tests.vllm_bagel.engine_runs", out, timeout=1500)
    assert out.is_file(), ended.stdout[-4000:] + ended.stderr[-8000:]
    results: dict[str, Any] = json.loads(out.read_text())
    return results


@pytest.fixture(scope="module")
def native() -> dict[str, Written]:
    """The native generator's texts."""
    return native_cases()


def same(texts: dict[str, Any], native: dict[str, Written]) -> list[str]:
    """Names of the cases whose ids are equal; their logprobs must be close."""
    equal = [name for name, text in texts.items() if text["ids"] == native[name].ids]
    for name in equal:
        assert texts[name]["logprobs"] == pytest.approx(native[name].logprobs, abs=CLOSE), name
    return equal


def test_golden_texts(runs: dict[str, Any]) -> None:
    wanted = golden_texts()
    assert wanted
    assert runs["golden"].keys() == wanted.keys()
    for name, ids in wanted.items():
        assert runs["golden"][name]["ids"][: len(ids)] == ids, name


@pytest.mark.parametrize("way", ["all", "fours", "warm"])
def test_native_texts(runs: dict[str, Any], native: dict[str, Written], way: str) -> None:
    """All contexts at once, with preemptions; in batches of four; with a warm cache."""
    assert len(native) >= 30
    assert sorted(same(runs[way], native)) == sorted(native)


def test_the_cache_was_small(runs: dict[str, Any]) -> None:
    """Requests were preempted, and later read from the prefix cache."""
    assert runs["num_preemptions"] > 0
    assert runs["num_cached"] > 0


def test_prefix_cache(runs: dict[str, Any], native: dict[str, Written]) -> None:
    """Contexts whose first tokens, images among them, came from the cache."""
    assert len(same(runs["warm_again"], native)) == len(runs["warm_again"]) == 4


@pytest.mark.parametrize(
    ("control", "kinds"),
    [("causal", {"vit", "vae"}), ("sequential", {"vit", "vae"}), ("one_expert", {"vae"})],
)
def test_controls(
    runs: dict[str, Any], native: dict[str, Written], control: str, kinds: set[str]
) -> None:
    """Without one part of the plugin, contexts with such images differ, and only those."""
    num_other_texts = 0
    for case in cases():
        text, own = runs[control][case.name], native[case.name]
        is_close = text["logprobs"] == pytest.approx(own.logprobs, abs=CLOSE)
        own_kinds = {part.kind for part in case.context if isinstance(part, ImageBlock)}
        is_equal = text["ids"] == own.ids and is_close
        assert is_equal != bool(own_kinds & kinds), case.name
        num_other_texts += text["ids"] != own.ids
    assert num_other_texts > len(native) / 4


def test_controls_left_no_trace(runs: dict[str, Any], native: dict[str, Written]) -> None:
    assert len(same(runs["after_controls"], native)) == 8


def test_split_image_is_refused(runs: dict[str, Any]) -> None:
    assert "an image has tokens" in runs["split_error"]
