"""Plans of the configurations that the project ships, and advice that helps."""

from pathlib import Path

import pytest

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.training.memory.plan import FIT, MemoryPlan, plan_memory

CONFIGS = Path(__file__).parents[3] / "configs"


def plan(trainer: str, **options: object) -> MemoryPlan:
    files = (CONFIGS / "fit/blockmoving_sft.yaml", CONFIGS / f"trainer/{trainer}.yaml")
    return plan_memory([str(file) for file in files], **options)  # type: ignore[arg-type]


def size(plan: MemoryPlan, name: str) -> int:
    return sum(item.gpu + item.host for item in plan.items if item.name.startswith(name))


@pytest.mark.parametrize(
    ("trainer", "memory", "ranks"),
    [
        ("one_gpu_24gb", 24.0, 1),
        pytest.param("one_gpu_80gb", 80.0, 1, marks=pytest.mark.slow),
        ("hsdp_multi_node", 80.0, 32),
    ],
)
def test_recipes_of_the_project(trainer: str, memory: float, ranks: int) -> None:
    found = plan(trainer, gpu_memory_gb=memory)
    assert found.gpus == ranks
    assert found.note is not None
    assert "BAGEL-7B-MoT" in found.note
    assert (found.gpu <= FIT * memory * 1e9) == found.fits


def test_sharding_divides_the_states() -> None:
    eight, sixteen = (plan("fsdp_8gpu", gpus=n) for n in (8, 16))
    assert (eight.shards, sixteen.shards) == (8, 16)
    for name in ("weights", "gradients", "Adam's moments", "moving average"):
        first, second = size(eight, name), size(sixteen, name)
        assert name == "gradients" or second == pytest.approx(first / 2, rel=1e-6)
    assert size(eight, "Adam's moments") == pytest.approx(2 * size(eight, "weights"), rel=0.01)


@pytest.mark.slow
def test_advice_ends_with_a_run_that_fits() -> None:
    short = plan("fsdp_8gpu", gpus=8, gpu_memory_gb=40.0)
    assert not short.fits
    sizes = [short.gpu, *(advice.gpu for advice in short.advice)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= FIT * 40e9 < sizes[-2]


@pytest.mark.slow
def test_no_advice_where_it_fits() -> None:
    found = plan("one_gpu_80gb", gpu_memory_gb=141.0)
    assert found.fits
    assert found.advice == ()


def test_a_checkpoint_that_is_named_by_a_preset() -> None:
    found = plan("one_gpu_80gb", preset="small")
    assert found.note is None
    assert size(found, "weights") < 1e9
    assert found.fits
    assert found.advice == ()


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"gpus": 0}, "--gpus"),
        ({"gpu_memory_gb": 0.0}, "--gpu_memory_gb"),
        ({"vit_share": 1.5}, "--vit_share"),
    ],
)
def test_wrong_options(options: dict[str, object], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        plan("one_gpu_80gb", **options)


def test_unknown_settings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {source: {preset: tiny}, optimiser: {lr: 1}}\n")
    with pytest.raises(ConfigError, match="optimiser"):
        plan_memory([str(file)])
