"""Resuming with other settings: each is used and logged, or refused; see configs/README.md."""

import enum
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from mathcanvas_lightning.errors import ConfigError, DataError, InputError, MathCanvasError
from mathcanvas_lightning.model.adapters import LoRASettings, absorb_lora
from mathcanvas_lightning.training import module as module_file
from mathcanvas_lightning.training.callbacks.ema import EMAConfig
from mathcanvas_lightning.training.checkpoint.plain import NotPlainError, plain
from mathcanvas_lightning.training.checkpoint.record import RECORD_KEY
from mathcanvas_lightning.training.losses import LossConfig
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import OptimizerConfig, ScheduleConfig
from mathcanvas_lightning.training.source import FreezeConfig, ModelSource
from tests.conftest import QUIET, TRAINER_WARNINGS
from tests.data.make_rows import interleaved_shards
from tests.training.runs import SMALL, config, network, training_data, weights

pytestmark = pytest.mark.filterwarnings(
    *TRAINER_WARNINGS,
    "ignore:You defined a `validation_step`",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:The dirpath has changed",
)
LORA = LoRASettings(parts=("und", "gen"), rank=2)
COSINE = ScheduleConfig(warmup_steps=1, total_steps=20)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 40)


def fit(
    model: BagelModule,
    folder: Path,
    shards: Path,
    *callbacks: Callback,
    steps: int = 2,
    packs: int = 1,
    resume: Path | None = None,
    **options: Any,
) -> Trainer:
    """Trains some steps; the checkpoint of the last one is `folder/last.ckpt`."""
    seed_everything(0, verbose=False)
    data = training_data(
        config(shards, name="rows"), packs_per_step=packs, **options.pop("data", {})
    )
    trainer = Trainer(
        **{
            **QUIET,
            "max_steps": steps,
            "accumulate_grad_batches": packs,
            "default_root_dir": folder,
            "callbacks": [*callbacks, SaveLast(folder / "last.ckpt")],
            **options,
        }
    )
    trainer.fit(model, data, ckpt_path=resume)
    return trainer


class SaveLast(Callback):
    """Saves after the last step, or after another one."""

    def __init__(self, path: Path, step: int | None = None) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        wanted = self.step or trainer.max_steps
        if trainer.global_step == wanted and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.path)


def base(**options: Any) -> BagelModule:
    defaults: dict[str, Any] = {
        "optimizer": OptimizerConfig(lr=2e-3, weight_decay=0.1),
        "schedule": COSINE,
    }
    return network(**{**defaults, **options})


@pytest.fixture(scope="module")
def saved(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps."""
    folder = tmp_path_factory.mktemp("saved")
    fit(base(), folder, shards)
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def adapted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps of adapters with an average."""
    folder = tmp_path_factory.mktemp("adapted")
    fit(base(lora=LORA, ema=EMAConfig(decay=0.5)), folder, shards)
    return folder / "last.ckpt"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages about changed settings when a run resumes."""
    texts: list[str] = []
    monkeypatch.setattr(module_file, "rank_zero_info", texts.append)
    return texts


class Rates(Callback):
    """Records the settings of each step."""

    def __init__(self) -> None:
        self.found: list[tuple[float, tuple[float, float], float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        group = optimizer.param_groups[0]
        self.found.append((group["lr"], tuple(group["betas"]), group["weight_decay"]))


@pytest.mark.slow
def test_nothing_changes_and_nothing_is_said(
    saved: Path, shards: Path, tmp_path: Path, said: list[str]
) -> None:
    straight, resumed, rates = base(), base(), Rates()
    fit(straight, tmp_path, shards, steps=4)
    fit(resumed, tmp_path, shards, rates, steps=4, resume=saved)
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(resumed)[name], tensor), name
    assert said == [
        "Settings that differ from those of the checkpoint, and are used from now on: "
        "trainer.max_steps 2 -> 4"
    ]
    assert [rate for rate, _, _ in rates.found] == [
        group * 2e-3 for group in _cosine(2, 3, warmup=1, end=20)
    ]


def _cosine(*steps: int, warmup: int, end: int, least: float = 1e-7 / 2e-3) -> list[float]:
    """Factors of transformers' cosine with a minimum."""
    import math

    found = []
    for step in steps:
        progress = (step - warmup) / (end - warmup)
        factor = 0.5 * (1 + math.cos(math.pi * 2 * 0.5 * progress))
        found.append(max(0, factor * (1 - least) + least))
    return found


def test_new_rate_betas_and_weight_decay_are_taken(
    saved: Path, shards: Path, tmp_path: Path, said: list[str]
) -> None:
    optimizer = OptimizerConfig(lr=1e-4, betas=(0.8, 0.9), weight_decay=0.2)
    rates = Rates()
    fit(base(optimizer=optimizer), tmp_path, shards, rates, steps=4, resume=saved)
    least = 1e-7 / 1e-4
    wanted = [1e-4 * f for f in _cosine(2, 3, warmup=1, end=20, least=least)]
    assert [rate for rate, _, _ in rates.found] == pytest.approx(wanted)
    assert {(betas, decay) for _, betas, decay in rates.found} == {((0.8, 0.9), 0.2)}
    assert "model.optimizer.lr 0.002 -> 0.0001" in said[0]
    assert "model.optimizer.betas [0.9, 0.95] -> [0.8, 0.9]" in said[0]
    assert "model.optimizer.weight_decay 0.1 -> 0.2" in said[0]


def test_the_step_of_the_checkpoint_is_not_saved_again(
    saved: Path, shards: Path, tmp_path: Path
) -> None:
    """With accumulation, its number is that of the first micro-batches after the resume, too."""
    saver = ModelCheckpoint(tmp_path / "own", "{step}", every_n_train_steps=2, save_top_k=-1)
    options = {"enable_checkpointing": True, "packs": 2}
    fit(base(), tmp_path, shards, saver, steps=4, resume=saved, **options)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["step=4.ckpt"]


def test_new_schedule_is_taken_at_once(
    saved: Path, shards: Path, tmp_path: Path, said: list[str]
) -> None:
    rates = Rates()
    model = base(schedule=ScheduleConfig(name="constant"))
    fit(model, tmp_path, shards, rates, steps=4, resume=saved)
    assert [rate for rate, _, _ in rates.found] == [2e-3, 2e-3]
    assert "model.schedule.name cosine -> constant" in said[0]


@pytest.mark.parametrize(
    ("changed", "options", "texts"),
    [
        (
            {
                "loss": LossConfig(ce_weight=0.5),
                "timestep_shift": 3.0,
                "compute_dtype": "bfloat16",
            },
            {"packs": 2, "gradient_clip_val": 1.0},
            [
                "model.loss.ce_weight 0.25 -> 0.5",
                "model.timestep_shift 2.0 -> 3.0",
                "model.compute_dtype float32 -> bfloat16",
                "data.packs_per_step 1 -> 2",
                "trainer.gradient_clip_val None -> 1.0",
            ],
        ),
        (
            {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"},
            {},
            ["model.param_dtype float32 -> bfloat16"],
        ),
        pytest.param(
            *({}, {"precision": "bf16-mixed"}, ["trainer.precision 32-true -> bf16-mixed"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_taken_and_said(
    changed: dict[str, Any],
    options: dict[str, Any],
    texts: list[str],
    saved: Path,
    shards: Path,
    tmp_path: Path,
    said: list[str],
) -> None:
    trainer = fit(base(**changed), tmp_path, shards, steps=3, resume=saved, **options)
    assert trainer.global_step == 3
    assert [text for text in texts if text not in said[0]] == []


@pytest.mark.slow
def test_taken_with_adapters(adapted: Path, shards: Path, tmp_path: Path, said: list[str]) -> None:
    lora = LoRASettings(parts=("gen", "und"), rank=2, dropout=0.1, seed=3)
    fit(base(lora=lora, ema=EMAConfig(decay=0.9)), tmp_path, shards, steps=3, resume=adapted)
    assert "model.lora.dropout 0.0 -> 0.1" in said[0]
    assert "model.ema.decay 0.5 -> 0.9" in said[0]


@pytest.mark.parametrize(
    ("changed", "options", "text"),
    [
        ({"freeze": FreezeConfig(vit=True)}, {}, r"freeze\.vit False; wanted freeze\.vit True"),
        ({"lora": LORA}, {}, r"lora\.rank None; wanted .*lora\.rank 2"),
        ({"ema": EMAConfig(decay=0.5)}, {}, "ema False; wanted ema True"),
        (
            {"source": ModelSource(preset="tiny", overrides={**SMALL, "llm_num_hidden_layers": 1})},
            {},
            r"num_hidden_layers 2; wanted .*num_hidden_layers 1",
        ),
        ({}, {"data": {"max_num_tokens": 500}}, "data state of the checkpoint"),
        ({}, {"data": {"seed": 5}}, "data state of the checkpoint"),
    ],
)
def test_refused(
    changed: dict[str, Any],
    options: dict[str, Any],
    text: str,
    saved: Path,
    shards: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(MathCanvasError, match=text):
        fit(base(**changed), tmp_path, shards, steps=3, resume=saved, **options)


def test_adapters_refuse_other_adapters_and_other_frozen_weights(
    adapted: Path, shards: Path, tmp_path: Path
) -> None:
    ema = EMAConfig(decay=0.5)
    with pytest.raises(ConfigError, match=r"lora\.rank 2; wanted lora\.rank 4"):
        other = LoRASettings(parts=("und", "gen"), rank=4)
        fit(base(lora=other, ema=ema), tmp_path, shards, steps=3, resume=adapted)
    with pytest.raises(DataError, match="frozen weights that were left out, and other ones"):
        source = ModelSource(preset="tiny", overrides=SMALL, seed=1)
        fit(base(lora=LORA, ema=ema, source=source), tmp_path, shards, steps=3, resume=adapted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lora": LORA, "ema": EMAConfig(decay=0.5)},
        pytest.param({"freeze": FreezeConfig(und=True)}, marks=pytest.mark.slow),
    ],
    ids=["lora", "frozen"],
)
def test_checkpoints_leave_frozen_weights_out(
    options: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    """The size is that of what is trained; a resumed run is the same."""
    straight, resumed = base(**options), base(**options)
    middle = SaveLast(tmp_path / "middle.ckpt", step=1)
    fit(straight, tmp_path / "straight", shards, middle, steps=2)
    state = torch.load(middle.path, weights_only=True)
    trained = {f"model.{n}" for n, p in straight.network.named_parameters() if p.requires_grad}
    kept = {name for name in state["state_dict"] if name.startswith("model.")}
    assert kept - trained <= {f"model.{name}" for name in module_file_tables()}
    assert trained <= kept
    frozen = {n for n, p in straight.network.named_parameters() if not p.requires_grad}
    assert set(state[RECORD_KEY]["left_out"]) == frozen - module_file_tables()
    fit(resumed, tmp_path / "resumed", shards, steps=2, resume=middle.path)
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def module_file_tables() -> set[str]:
    from mathcanvas_lightning.model.checkpoint import TABLES

    return set(TABLES)


class Colour(enum.Enum):
    RED = "red"


class Odd(Callback):
    """A callback whose state holds types that `weights_only` refuses."""

    def __init__(self, **state: Any) -> None:
        self.state, self.loaded = state, None

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_state_of_callbacks_is_converted(shards: Path, tmp_path: Path) -> None:
    odd = Odd(
        best=np.float64(0.5), where=Path("x/y"), seen=np.arange(3), kind=Colour.RED, n=[np.int64(2)]
    )
    fit(base(), tmp_path, shards, odd)
    again = Odd()
    fit(base(), tmp_path, shards, again, steps=3, resume=tmp_path / "last.ckpt")
    assert again.loaded is not None
    assert torch.equal(again.loaded.pop("seen"), torch.arange(3))
    assert again.loaded == {"best": 0.5, "where": "x/y", "kind": "red", "n": [2]}
    assert type(again.loaded["best"]) is float


@pytest.mark.slow
def test_state_that_can_not_be_read_is_left_out_with_a_warning(
    shards: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"leaves out the state of callback Odd: .*\.Odd"):
        fit(base(), tmp_path, shards, Odd(inner=Odd()))
    model = base()
    trainer = fit(model, tmp_path, shards, steps=3, resume=tmp_path / "last.ckpt")
    assert trainer.global_step == 3


def test_plain() -> None:
    counted = plain(Counter({"a": 1}))
    assert (type(counted), counted) == (Counter, Counter(a=1))
    nested = plain({Path("a"): (np.bool_(True), {1}, None, b"x", torch.float32)})
    assert nested == {"a": (True, {1}, None, b"x", torch.float32)}
    for value in (object(), {"a": [lambda: None]}, np.array(["x"], dtype=object)):
        with pytest.raises(NotPlainError):
            plain(value)


@pytest.mark.slow
@pytest.mark.parametrize("average", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_new_run_starts_from_the_weights_of_an_earlier_one(
    average: bool, adapted: Path, shards: Path, tmp_path: Path
) -> None:
    """Adapters are merged, and the step is 0."""
    earlier = base(lora=LORA, ema=EMAConfig(decay=0.5))
    fit(earlier, tmp_path, shards, steps=3, resume=adapted)
    start = Start()
    model = base(source=weights_of(tmp_path / "last.ckpt", average=average))
    fit(model, tmp_path / "new", shards, start, steps=1)
    assert earlier.ema_weights is not None
    if average:
        earlier.ema_weights.swap_in(earlier.network)
    absorb_lora(earlier.network)
    for name, tensor in weights(earlier).items():
        torch.testing.assert_close(start.found[name], tensor, rtol=0, atol=1e-6)


def weights_of(path: Path, *, average: bool = False) -> ModelSource:
    return ModelSource(preset="tiny", overrides=SMALL, weights=str(path), average=average)


@pytest.mark.slow
def test_new_adapters_on_the_weights_of_an_earlier_run_leave_nothing_out(
    adapted: Path, shards: Path, tmp_path: Path
) -> None:
    source = weights_of(adapted)
    fit(base(source=source, lora=LORA), tmp_path / "lora", shards, steps=1)
    stored = torch.load(tmp_path / "lora" / "last.ckpt", weights_only=True)
    assert stored["global_step"] == 1
    assert stored[RECORD_KEY]["left_out"] == ()
    resumed = base(source=source, lora=LORA)
    fit(resumed, tmp_path / "again", shards, steps=2, resume=tmp_path / "lora" / "last.ckpt")


class Start(Callback):
    """Copies the weights at the start."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.found = weights(pl_module)


def test_weights_that_do_not_fit(saved: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source\.weights: found nothing at"):
        ModelSource(preset="tiny", weights=str(tmp_path / "none.ckpt")).config()
    other = {**SMALL, "llm_num_hidden_layers": 1}
    model = base(source=ModelSource(preset="tiny", overrides=other, weights=str(saved)))
    with pytest.raises(ConfigError, match=r"last\.ckpt of another network: language_model"):
        fit(model, tmp_path, shards)
    source = ModelSource(preset="tiny", overrides=SMALL, weights=str(saved), average=True)
    with pytest.raises(ConfigError, match="no moving average"):
        fit(base(source=source), tmp_path, shards)
