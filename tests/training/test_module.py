"""BagelModule: a step against the reference, accumulation, validation, errors."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from mathcanvas_lightning.batch import LossTotals, MicroBatch, PackedBatch
from mathcanvas_lightning.errors import ConfigError, TrainingError
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.model.checkpoint import TABLES
from mathcanvas_lightning.model.parts import part_of
from mathcanvas_lightning.training import module as module_file
from mathcanvas_lightning.training.callbacks.ema import EMAConfig
from mathcanvas_lightning.training.inputs import PackInputs, draw_inputs
from mathcanvas_lightning.training.losses import LossConfig
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.numeric import NumericConfig, NumericSettings
from mathcanvas_lightning.training.optim import OptimizerConfig, ScheduleConfig
from mathcanvas_lightning.training.source import FreezeConfig, ModelSource
from tests.conftest import TRAINER_WARNINGS, golden_folder
from tests.data.make_rows import config, interleaved_shards, t2i_shards
from tests.parity.packs import forward_inputs, load_pack, need
from tests.training.runs import SMALL, network, train, training_data, weights

GOLDEN = golden_folder()
pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS, "ignore:You defined a `validation_step`")


class Batches:
    """A loader over a list of micro-batches."""

    def __init__(self, batches: Sequence[MicroBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.batches)


class Gradients(Callback):
    """Records the gradients of the first backward pass."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_after_backward(self, trainer: Any, pl_module: BagelModule) -> None:
        for name, parameter in pl_module.network.named_parameters():
            if parameter.grad is not None:
                self.found.setdefault(name, parameter.grad.clone())


def micro_batch(pack: PackedBatch, totals: LossTotals | None = None) -> MicroBatch:
    return MicroBatch(
        pack=pack,
        samples=(),
        image_seeds=tuple(range(len(pack.images))),
        step_totals=totals or LossTotals.of(pack),
        epoch=0,
        step=0,
    )


@pytest.mark.parametrize("freeze_und", [False, True])
def test_step_equals_the_reference(
    freeze_und: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads(need(GOLDEN / "settings.json").read_text())
    name = "pack_all_freeze_und" if freeze_und else "pack_all"
    forward = load_file(need(GOLDEN / f"forward_{name}.safetensors"))
    model = BagelModule(
        ModelSource(checkpoint=str(need(GOLDEN / "tiny_bagel"))),
        loss=LossConfig(ce_weight=settings["ce_weight"], mse_weight=settings["mse_weight"]),
        schedule=ScheduleConfig(name="constant"),
        freeze=FreezeConfig(und=freeze_und),
        timestep_shift=settings["timestep_shift"],
    )
    golden = load_pack(GOLDEN, "pack_all", model.config)
    inputs = PackInputs(**forward_inputs(golden, forward, model.config, settings))
    monkeypatch.setattr(module_file, "draw_inputs", lambda *_: inputs)
    gradients = Gradients()
    trainer = train(
        model,
        Batches([micro_batch(golden.batch)]),
        tmp_path,
        max_steps=1,
        callbacks=[gradients],
        gradient_clip_val=None,
    )
    loss = trainer.callback_metrics["train/loss"]
    assert loss == pytest.approx(float(forward["loss"]), rel=1e-5)
    norms = json.loads(need(GOLDEN / f"grad_norms_{name}.json").read_text())
    for parameter, wanted in norms.items():
        found = gradients.found.get(parameter)
        norm = 0.0 if found is None else float(found.norm())
        if max(wanted or 0, norm) > 1e-7:
            assert norm == pytest.approx(wanted or 0, rel=1e-3, abs=1e-7), parameter


def joined(packs: Sequence[PackedBatch]) -> PackedBatch:
    """Joins several packs into one."""
    starts = [0]
    images = [0]
    for pack in packs:
        starts.append(starts[-1] + pack.sequence_length)
        images.append(images[-1] + len(pack.images))
    fields: dict[str, Any] = {}
    for name in PackedBatch.__dataclass_fields__:
        values = [getattr(pack, name) for pack in packs]
        if name.endswith("_indexes"):
            values = [value + start for value, start in zip(values, starts, strict=False)]
        if name == "latent_image_ids":
            values = [tuple(i + first for i in v) for v, first in zip(values, images, strict=False)]
        tensors = isinstance(values[0], torch.Tensor)
        fields[name] = torch.cat(values) if tensors else sum(values, ())
    return PackedBatch(**fields)


def joined_batches(batches: Sequence[MicroBatch]) -> MicroBatch:
    return MicroBatch(
        pack=joined([batch.pack for batch in batches]),
        samples=sum((batch.samples for batch in batches), ()),
        image_seeds=sum((batch.image_seeds for batch in batches), ()),
        step_totals=batches[0].step_totals,
        epoch=0,
        step=batches[0].step,
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 60)


@pytest.mark.slow
def test_accumulation_changes_nothing(shards: Path, tmp_path: Path) -> None:
    data = training_data(config(shards), packs_per_step=4)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())[:12]
    # With the recipe's eps of 1e-15, Adam takes full steps for gradients that are rounding errors.
    optimizer = OptimizerConfig(lr=1e-3, eps=1e-6)
    one_by_one, together = network(optimizer=optimizer), network(optimizer=optimizer)
    train(one_by_one, Batches(batches), tmp_path, accumulate=4)
    merged = [joined_batches(batches[start : start + 4]) for start in range(0, 12, 4)]
    train(together, Batches(merged), tmp_path)
    for (name, found), wanted in zip(
        weights(one_by_one).items(), weights(together).values(), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6, msg=name)


class Losses(Callback):
    """Records the losses logged at each step, and counts their collectives."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.num_reductions = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        reduce = trainer.strategy.reduce

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.num_reductions += 1
            return reduce(*args, **kwargs)

        trainer.strategy.reduce = counted

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            names = ("train/loss", "train/ce", "train/mse")
            self.logged.append({name: float(trainer.callback_metrics[name]) for name in names})


@pytest.mark.slow
def test_logged_losses_are_those_of_the_global_step(shards: Path, tmp_path: Path) -> None:
    data = training_data(config(shards), packs_per_step=2)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())[:4]
    merged = [joined_batches(batches[:2]), joined_batches(batches[2:])]
    one_by_one, together = Losses(), Losses()
    for losses, given, accumulate in ((one_by_one, batches, 2), (together, merged, 1)):
        model = network(optimizer=OptimizerConfig(lr=1e-3, eps=1e-6))
        options = {"accumulate": accumulate, "max_steps": 2, "callbacks": [losses]}
        train(model, Batches(given), tmp_path, **options)
        assert len(losses.logged) == losses.num_reductions == 2
    for found, wanted in zip(one_by_one.logged, together.logged, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    first = together.logged[0]
    combined = 0.25 * first["train/ce"] + first["train/mse"]
    assert first["train/loss"] == pytest.approx(combined)


def test_random_numbers_depend_only_on_the_sample(shards: Path) -> None:
    data = training_data(config(shards), packs_per_step=4)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())[:4]
    model = network()
    vae = module_file.load_vae(model.source, torch.float32, torch.device("cpu"))
    separate = [draw_inputs(vae, batch, 2, 2.0) for batch in batches]
    together = draw_inputs(vae, joined_batches(batches), 2, 2.0)
    torch.testing.assert_close(torch.cat([i.noise for i in separate]), together.noise)
    torch.testing.assert_close(
        torch.cat([i.latents for i in separate]), together.latents, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(torch.cat([i.timesteps for i in separate]), together.timesteps)
    noisy = joined([batch.pack for batch in batches]).noisy_latents()
    assert together.noise[noisy].std() == pytest.approx(1, abs=0.05)
    assert (together.noise[~noisy] == 0).all()
    assert (together.timesteps[~noisy] == 0).all()


@pytest.mark.slow
def test_validation_metrics(shards: Path, tmp_path: Path) -> None:
    captions = config(t2i_shards(tmp_path / "t2i", 6), "t2i")
    data = training_data(
        config(shards), validation=[config(shards, name="val"), captions], packs_per_step=2
    )
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = train(
        network(), data, tmp_path, accumulate=2, val_check_interval=2, max_steps=2, logger=logger
    )
    metrics = trainer.callback_metrics
    assert 0 <= metrics["val/val/accuracy"] <= 1
    assert 4 < metrics["val/val/ce"] < 6.5  # ln 320 at the start
    assert metrics["val/t2i/mse"] > 0
    assert "val/t2i/ce" not in metrics  # captions carry no loss
    again = trainer.validate(trainer.lightning_module, data, verbose=False)
    third = trainer.validate(trainer.lightning_module, data, verbose=False)
    assert again == third  # the same noise and timesteps in every validation
    assert again[0]["val/val/mse"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("param_dtype", "compute_dtype"),
    [("float32", "bfloat16"), ("bfloat16", "bfloat16")],
)
def test_dtypes(param_dtype: Any, compute_dtype: Any, shards: Path, tmp_path: Path) -> None:
    model = network(param_dtype=param_dtype, compute_dtype=compute_dtype)
    trainer = train(model, training_data(config(shards)), tmp_path)
    assert {p.dtype for p in model.network.parameters()} == {model.param_dtype}
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


FROZEN: tuple[dict[str, Any], ...] = (
    {"lora": LoRASettings(parts=("und", "gen", "vit", "connector"), rank=2)},
    {"freeze": FreezeConfig(und=True)},
    {"freeze": FreezeConfig(llm=True)},
    {"freeze": FreezeConfig(vit=True, connector=True)},
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [FROZEN[0], *(pytest.param(one, marks=pytest.mark.slow) for one in FROZEN[1:])],
    ids=["lora", "und", "llm", "vit"],
)
def test_trained_in_float32_and_frozen_in_bfloat16(
    options: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    data = training_data(config(shards), validation=[config(shards, name="val")])
    model = network(compute_dtype="bfloat16", **options)
    trainer = train(model, data, tmp_path, max_steps=2, val_check_interval=2, limit_val_batches=1)
    parameters = dict(model.network.named_parameters())
    tables = {} if "lora" in options else TABLES
    for name, parameter in parameters.items():
        trained = parameter.requires_grad or name in tables
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name
    moments = trainer.optimizers[0].state.values()
    assert {state["exp_avg"].dtype for state in moments} == {torch.float32}
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert torch.isfinite(trainer.callback_metrics["val/val/ce"])


@pytest.mark.slow
def test_small_updates_of_adapters_are_kept(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In bfloat16, most steps of 1e-5 round away; see the warning about model.param_dtype."""

    def moved(**options: Any) -> float:
        lora = LoRASettings(parts=("und", "gen"), rank=4)
        optimizer = OptimizerConfig(lr=1e-5)
        model = network(lora=lora, optimizer=optimizer, compute_dtype="bfloat16", **options)
        before = Weights()
        train(model, training_data(config(shards)), tmp_path, max_steps=4, callbacks=[before])
        pairs = [(w, before.found[n]) for n, w in weights(model).items() if ".lora_A." in n]
        return sum(int((w != b).sum()) for w, b in pairs) / sum(w.numel() for w, _ in pairs)

    assert moved() > 0.8  # the others have no gradient
    assert moved(param_dtype="bfloat16") < 0.5
    assert "Train in float32" in caplog.text


class Weights(Callback):
    """Copies the weights at the start of the training."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.found = weights(pl_module)


def test_default_learning_rates() -> None:
    rates = [
        network(optimizer=OptimizerConfig(lr=lr), lora=lora).optimizer_config.lr
        for lr in (None, 3e-5)
        for lora in (None, LoRASettings())
    ]
    assert rates == [1e-5, 1e-4, 3e-5, 3e-5]


class Broken(Callback):
    """Makes a gradient of some optimizer steps infinite, and copies weights after each step."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.weights: list[dict[str, torch.Tensor]] = []
        self.averages: list[torch.Tensor] = []

    def on_after_backward(self, trainer: Any, pl_module: BagelModule) -> None:
        if trainer.global_step in self.steps:
            gradient = pl_module.network.llm2vae.weight.grad
            assert gradient is not None
            gradient[0, 0] = float("inf")

    def on_train_batch_end(self, trainer: Any, pl_module: BagelModule, *args: Any) -> None:
        self.weights.append(weights(pl_module))
        averages = pl_module.ema_weights
        assert averages is not None
        self.averages.append(torch.cat([p.detach().flatten() for p in averages.parameters()]))


@pytest.mark.parametrize("clip", [1.0, None])
def test_gradients_that_are_not_finite_skip_the_step(
    clip: float | None, shards: Path, tmp_path: Path
) -> None:
    broken = Broken(2, 3)
    model = network(ema=EMAConfig(decay=0.5))
    options = {"max_steps": 5, "callbacks": [broken], "gradient_clip_val": clip}
    trainer = train(model, training_data(config(shards)), tmp_path, **options)
    same = [
        all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        for before, after in pairwise(broken.weights)
    ]
    assert same == [False, True, True, False]
    assert [torch.equal(a, b) for a, b in pairwise(broken.averages)] == same
    assert trainer.callback_metrics["train/skipped_steps"] == 2
    steps = {float(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert steps == {3.0}


def test_too_many_skipped_steps_end_the_run(shards: Path, tmp_path: Path) -> None:
    model = network(ema=EMAConfig(decay=0.5), max_skipped_steps=2)
    data = training_data(config(shards))
    with pytest.raises(TrainingError, match=r"step 5: found .* in 3 steps in a row"):
        train(model, data, tmp_path, max_steps=9, callbacks=[Broken(0, 1, 3, 4, 5)])


class Norms(Callback):
    """Computes the norms of the gradients by torch, and keeps what was logged."""

    def __init__(self) -> None:
        self.wanted: list[float] = []
        self.logged: list[dict[str, float]] = []
        self.clipped: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        self.wanted.append(float(torch.nn.utils.get_total_norm(found)))

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        if found:
            largest = max(float(gradient.abs().max()) for gradient in found)
            self.clipped.append((float(torch.nn.utils.get_total_norm(found)), largest))

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        metrics = trainer.callback_metrics.items()
        self.logged.append({name: float(v) for name, v in metrics if "grad_norm" in name})


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_norms_of_the_parts_and_clipping(algorithm: str, shards: Path, tmp_path: Path) -> None:
    norms, limit = Norms(), 0.01
    options = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    train(network(), training_data(config(shards)), tmp_path, callbacks=[norms], **options)
    parts = {"und", "gen", "vit", "connector", "head"}
    for logged, wanted in zip(norms.logged, norms.wanted, strict=True):
        assert logged.keys() == {"train/grad_norm", *(f"grad_norm/{part}" for part in parts)}
        total = logged.pop("train/grad_norm")
        assert total == pytest.approx(wanted, rel=1e-5)
        assert total == pytest.approx(sum(v**2 for v in logged.values()) ** 0.5, rel=1e-5)
        assert total > limit
    assert len(norms.clipped) >= 2
    for norm, largest in norms.clipped:
        assert (norm if algorithm == "norm" else largest) == pytest.approx(limit, rel=1e-3)


class Metrics(Callback):
    """Keeps the training metrics of each step."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            found = trainer.logged_metrics.items()
            self.found.append({k: float(v) for k, v in found if k.startswith("train/")})


@pytest.mark.slow
def test_losses_of_each_data_set(shards: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "log", name="", version="")
    captions = config(t2i_shards(tmp_path / "t2i", 20), "t2i")
    data = training_data(config(shards, name="puzzles"), captions, packs_per_step=2)
    steps = Metrics()
    options = {"max_steps": 6, "logger": logger, "log_every_n_steps": 1, "callbacks": [steps]}
    train(network(), data, tmp_path, accumulate=2, **options)
    assert len(steps.found) == 6
    for metrics in steps.found:
        for loss in ("ce", "mse"):
            sets = ("puzzles", "t2i")
            counts = {name: metrics[f"train/{name}/{loss}_tokens"] for name in sets}
            assert sum(counts.values()) == metrics[f"train/{loss}_tokens"]
            total = sum(n * metrics[f"train/{name}/{loss}"] for name, n in counts.items() if n)
            mean = total / sum(counts.values())
            assert mean == pytest.approx(metrics[f"train/{loss}"], rel=1e-4)
        assert metrics["train/t2i/ce_tokens"] == 0
        assert metrics["train/puzzles/tokens"] > metrics["train/puzzles/ce_tokens"] > 0
    assert any(metrics["train/t2i/mse_tokens"] for metrics in steps.found)


def test_learning_rates_of_parts(shards: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=1e-3, part_lr={"vit": 1e-5, "head": 2e-3}, weight_decay=0.1)
    model = network(optimizer=optimizer)
    trainer = train(model, training_data(config(shards)), tmp_path, max_steps=1)
    names = {id(p): name for name, p in model.network.named_parameters()}
    for group in trainer.optimizers[0].param_groups:
        for parameter in group["params"]:
            part = part_of(names[id(parameter)])
            assert group["lr"] == {"vit": 1e-5, "head": 2e-3}.get(part, 1e-3)
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
    frozen = network(optimizer=optimizer, freeze=FreezeConfig(vit=True))
    with pytest.raises(ConfigError, match="part_lr: found vit, without trained parameters"):
        train(frozen, training_data(config(shards)), tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(lr=0), "optimizer.lr: found 0"),
        (lambda: OptimizerConfig(part_lr={"text": 1e-5}), "found text; wanted parts"),
        (lambda: OptimizerConfig(part_lr={"vit": -1.0}), "part_lr.vit: found -1.0"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: ScheduleConfig(warmup_steps=-1), "warmup_steps: found -1"),
        (lambda: NumericConfig(max_skipped_steps=-1), "max_skipped_steps"),
        (
            lambda: NumericConfig(frozen_dtype="bfloat16"),
            "float32, with frozen weights in bfloat16",
        ),
    ],
)
def test_numbers_that_are_wrong(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.slow
def test_only_unfrozen_parameters_are_trained(shards: Path, tmp_path: Path) -> None:
    for options, trained in (
        ({"freeze": FreezeConfig(llm=True, vit=True)}, ("connector", "llm2vae", "vae2llm", "time")),
        ({"freeze": FreezeConfig(und=True)}, ("moe_gen", "lm_head", "llm2vae", "vae2llm", "time")),
        ({"lora": LoRASettings(parts=["gen"], rank=2)}, ("lora",)),
    ):
        model, untrained = network(**options), network()
        train(model, training_data(config(shards)), tmp_path, max_steps=2)
        train(untrained, training_data(config(shards)), tmp_path, max_steps=0)
        before = weights(untrained)
        changed = {
            name
            for name, tensor in weights(model).items()
            if not torch.equal(tensor, before.get(name.replace(".base_layer", ""), tensor * 0))
        }
        assert changed
        assert all(any(word in name for word in trained) for name in changed), changed


def test_the_schedule(shards: Path, tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Any, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    schedule = ScheduleConfig(warmup_steps=2, min_lr=1e-4)
    model = network(schedule=schedule, optimizer=OptimizerConfig(lr=1e-3))
    train(model, training_data(config(shards)), tmp_path, max_steps=6, callbacks=[Rates()])
    assert rates[:3] == pytest.approx([0.0, 5e-4, 1e-3])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 1e-4 < rates[-1] < 3e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BagelModule(), "no checkpoint"),
        (lambda: network(source=ModelSource(checkpoint="x", preset="tiny")), "both"),
        (lambda: network(source=ModelSource(preset="huge")), "huge"),
        (lambda: network(param_dtype="bfloat16"), "float32, with weights in bfloat16"),
        (lambda: network(source=ModelSource(preset="tiny", overrides={"llm_x": 1})), "llm_x"),
    ],
)
def test_sources_that_are_wrong(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_numeric_settings_are_those_of_the_config() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(NumericConfig)}
    assert defaults.keys() == NumericSettings.__annotations__.keys()
    model, given = network(), NumericConfig(timestep_shift=3.0, compute_dtype="bfloat16")
    assert (model.timestep_shift, model.param_dtype) == (2.0, torch.float32)
    model = network(**dataclasses.asdict(given))
    assert (model.timestep_shift, model.compute_dtype) == (3.0, torch.bfloat16)
    with pytest.raises(TypeError, match="shift"):
        network(shift=1.0)


def test_settings_that_contradict(shards: Path, tmp_path: Path) -> None:
    data = training_data(config(shards))
    both = network(lora=LoRASettings(), freeze=FreezeConfig(vit=True))
    with pytest.raises(ConfigError, match="vit together with lora"):
        train(both, data, tmp_path)
    everything = network(freeze=FreezeConfig(llm=True, vit=True, connector=True))
    train(everything, training_data(config(shards)), tmp_path, max_steps=1)
    long = network(schedule=ScheduleConfig(warmup_steps=99))
    with pytest.raises(ConfigError, match=r"warmup_steps.*99, with 3 steps"):
        train(long, training_data(config(shards)), tmp_path)
    other = training_data(config(shards), geometry=ModelSource(preset="tiny").config().geometry)
    with pytest.raises(ConfigError, match=r"data\.geometry"):
        train(network(), other, tmp_path)
    with pytest.raises(ConfigError, match="a run of unlimited length"):
        train(network(), Batches([]), tmp_path, max_steps=-1, max_epochs=-1)


def test_a_vocabulary_that_is_too_small(shards: Path, tmp_path: Path) -> None:
    source = ModelSource(preset="tiny", overrides={**SMALL, "llm_vocab_size": 200})
    with pytest.raises(ConfigError, match=r"data\.tokenizer.*262 ids.*at most the 200"):
        train(network(source=source), training_data(config(shards)), tmp_path)
