"""Exported checkpoints give the outputs of the trained network, here and in vLLM."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from mathcanvas_lightning.batch import make_splits
from mathcanvas_lightning.demo.new_bagel import make_bagel
from mathcanvas_lightning.errors import (
    ConfigError,
    DataError,
    InputError,
    MathCanvasError,
    OutputError,
)
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.model.bagel import Bagel, BagelOutput
from mathcanvas_lightning.model.synthetic import synthetic_inputs, synthetic_pack
from mathcanvas_lightning.training.callbacks.ema import EMAConfig, parameter_name
from mathcanvas_lightning.training.checkpoint.export import export_checkpoint
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import OptimizerConfig, ScheduleConfig
from mathcanvas_lightning.training.source import ModelSource
from tests.conftest import QUIET, TRAINER_WARNINGS, RunTool, folder_bytes, run_python
from tests.data.make_rows import TOKENIZER, interleaved_shards
from tests.generation.engine import ONE_GIB, ONE_PROCESS, engine_lock, needs_engine  # noqa: F401
from tests.training.runs import config, network, train, training_data

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS, "ignore:You defined a `validation_step`")
STEPS = 3


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A tiny network is fastest on one thread, especially on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 8)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory with weights large enough to influence the outputs."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "corpus.txt").write_text("The red block moves, and the blue block falls.\n" * 50)
    made = make_bagel(str(folder / "made"), corpus=[str(folder / "corpus.txt")], seed=4)
    model = Bagel.from_checkpoint(made.path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "pos_embed" not in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_checkpoint(folder / "untrained", dtype=torch.float32, source=made.path)
    return folder / "untrained"


def data_for(model: BagelModule, shards: Path, **options: Any) -> Any:
    return training_data(
        config(shards), geometry=model.config.geometry, tokenizer=TOKENIZER, **options
    )


Trained = tuple[BagelModule, Path]


@pytest.fixture(scope="module")
def trained(untrained: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with a moving average, and its checkpoint."""
    model = network(source=ModelSource(checkpoint=str(untrained)), ema=EMAConfig(decay=0.8))
    return fitted(model, data_for(model, shards), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def adapted(untrained: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of adapters with a moving average, and its checkpoint."""
    lora = LoRASettings(rank=2, alpha=6.0, parts=("und", "gen", "vit", "connector"))
    source = ModelSource(checkpoint=str(untrained))
    optimizer = OptimizerConfig(lr=1e-2)
    model = network(source=source, lora=lora, ema=EMAConfig(decay=0.5), optimizer=optimizer)
    return fitted(model, data_for(model, shards), tmp_path_factory.mktemp("adapters"))


def fitted(model: BagelModule, data: Any, folder: Path) -> Trained:
    trainer = train(model, data, folder, max_steps=STEPS)
    trainer.save_checkpoint(folder / "run.ckpt")
    return model, folder / "run.ckpt"


@torch.no_grad()
def outputs(model: Bagel) -> BagelOutput:
    batch = synthetic_pack(
        [["question", "vit", "clean", "question", "noisy", "answer"]], model.config
    )
    return model.eval()(batch, **synthetic_inputs(batch, model.config))


def compare(found: BagelOutput, wanted: BagelOutput, tolerance: float) -> None:
    for name in ("hidden_states", "ce", "velocities"):
        a, b = getattr(found, name), getattr(wanted, name)
        if not tolerance:
            assert torch.equal(a, b), name
        assert (a.float() - b.float()).norm() <= tolerance * b.float().norm(), name


@pytest.mark.slow
def test_adapters_beside_a_base_in_nf4(untrained: Path, shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the qlora extra is not installed")

    def module() -> BagelModule:
        return network(
            source=ModelSource(checkpoint=str(untrained)),
            lora=LoRASettings(rank=4, parts=("und", "gen")),
            optimizer=OptimizerConfig(lr=3e-3),
            frozen_dtype="nf4",
        )

    model = module()
    data = data_for(model, shards, validation=[config(shards, name="val")])
    before = validated(model, data)
    trainer = train(model, data, tmp_path / "run", max_steps=30)
    after = validated(model, data)
    assert after["ce"] < 0.8 * before["ce"]
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    # Frozen weights are not in it; the exported ones are those beside which the adapters trained.
    stored = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert not any("base_layer" in name for name in stored)
    export_checkpoint(
        str(tmp_path / "run.ckpt"), output=str(tmp_path / "out"), dtype="fp32", merge_lora=True
    )
    loaded = Bagel.from_checkpoint(tmp_path / "out", dtype=torch.float32)
    compare(outputs(loaded), outputs(model.network), 1e-4)
    resumed = module()
    again = training_data(config(shards), geometry=model.config.geometry, tokenizer=TOKENIZER)
    resume(resumed, again, tmp_path / "again", tmp_path / "run.ckpt")
    compare(outputs(resumed.network), outputs(model.network), 0.0)


def resume(model: BagelModule, data: Any, folder: Path, checkpoint: Path) -> None:
    """Loads a finished run, without training it further."""
    options = QUIET | {"num_sanity_val_steps": 2}
    trainer = Trainer(max_steps=30, default_root_dir=folder, **options)
    trainer.fit(model, data, ckpt_path=str(checkpoint))


def averaged(model: BagelModule, call: Callable[[], BagelOutput]) -> BagelOutput:
    assert model.ema_weights is not None
    model.ema_weights.swap_in(model.network)
    try:
        return call()
    finally:
        model.ema_weights.swap_out(model.network)


@pytest.mark.parametrize("ema", [False, True])
def test_exported_equals_trained_network(ema: bool, trained: Trained, tmp_path: Path) -> None:
    model, checkpoint = trained
    report = export_checkpoint(str(checkpoint), output=str(tmp_path / "out"), ema=ema, dtype="fp32")
    loaded = Bagel.from_checkpoint(tmp_path / "out", dtype=torch.float32)
    plain = outputs(model.network)
    wanted = averaged(model, lambda: outputs(model.network)) if ema else plain
    compare(outputs(loaded), wanted, 0.0)
    assert ema != torch.equal(wanted.ce, plain.ce)
    parameters = dict(model.network.named_parameters())
    assert report.step == STEPS
    assert report.num_parameters == sum(p.numel() for p in parameters.values())
    assert report.num_averaged == ema * sum(p.requires_grad for p in parameters.values())
    if ema:
        stored = load_file(tmp_path / "out" / "ema.safetensors")
        assert model.ema_weights is not None
        for name, tensor in model.ema_weights.named_parameters():
            assert torch.equal(stored[parameter_name(name)], tensor)


def test_files_match_the_source(
    trained: Trained, untrained: Path, shards: Path, tmp_path: Path
) -> None:
    export_checkpoint(str(trained[1]), output=str(tmp_path / "out"))
    ours, theirs = folder_bytes(tmp_path / "out"), folder_bytes(untrained)
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert changed == {"config.json", "ema.safetensors"}
    before, after = (json.loads(files["config.json"]) for files in (theirs, ours))
    assert before.pop("drawing_size") is None
    width, height = after.pop("drawing_size")  # the size of the drawings in the training
    assert width % 16 == height % 16 == 0 < width
    assert before.pop("trained_images") is None
    assert after.pop("trained_images") == {
        "vae_transform": asdict(config(shards).vae_transform),
        "vit_transform": asdict(config(shards).vit_transform),
        "interpolate_positions": False,
    }
    assert before == after
    stored = load_file(tmp_path / "out" / "ema.safetensors")
    assert stored.keys() == load_file(untrained / "ema.safetensors").keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bfloat16_within_rounding(trained: Trained, tmp_path: Path) -> None:
    model, checkpoint = trained
    export_checkpoint(str(checkpoint), output=str(tmp_path / "out"))
    for name, tensor in load_file(tmp_path / "out" / "ema.safetensors").items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, model.network.state_dict()[name].bfloat16())
    loaded = Bagel.from_checkpoint(tmp_path / "out", dtype=torch.float32)
    compare(outputs(loaded), outputs(model.network), 2e-2)


@pytest.mark.parametrize("ema", [False, True])
def test_adapters_are_merged(ema: bool, adapted: Trained, untrained: Path, tmp_path: Path) -> None:
    model, checkpoint = adapted
    report = export_checkpoint(
        str(checkpoint), output=str(tmp_path / "out"), dtype="fp32", merge_lora=True, ema=ema
    )
    assert report.num_merged > 20
    plain = outputs(model.network)
    wanted = averaged(model, lambda: outputs(model.network)) if ema else plain
    found = outputs(Bagel.from_checkpoint(tmp_path / "out", dtype=torch.float32))
    compare(found, wanted, 1e-5)
    start = outputs(Bagel.from_checkpoint(untrained, dtype=torch.float32))
    for other in (start, plain) if ema else (start,):
        assert (found.ce - other.ce).abs().max() > 1e-3


@pytest.mark.slow
def test_from_a_preset_and_another_source(shards: Path, tmp_path: Path, untrained: Path) -> None:
    model = network(source=ModelSource(preset="tiny"))
    _, checkpoint = fitted(model, data_for(model, shards), tmp_path)
    report = export_checkpoint(str(checkpoint), output=str(tmp_path / "out"), dtype="fp32")
    assert report.source is None
    loaded = Bagel.from_checkpoint(tmp_path / "out", dtype=torch.float32)
    compare(outputs(loaded), outputs(model.network), 0.0)
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    export_checkpoint(
        str(checkpoint), output=str(tmp_path / "out"), source=str(untrained), overwrite=True
    )
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.slow
def test_command(trained: Trained, tmp_path: Path, run_tool: RunTool) -> None:
    words = ["export_checkpoint.py", str(trained[1]), "--output", tmp_path / "out", "--ema"]
    done = run_tool(*words, "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    assert "parameters as of step 3; moving average of" in done.stdout
    assert next(Bagel.from_checkpoint(tmp_path / "out").parameters()).dtype == torch.bfloat16
    again = run_tool(*words)
    assert again.returncode == 1
    assert "give --overwrite" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_wrong_inputs(trained: Trained, adapted: Trained, shards: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")

    def fails(kind: type[MathCanvasError], match: str, path: Any, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            export_checkpoint(str(path), **{"output": out, **options})
        assert not list(tmp_path.glob("*out"))

    fails(InputError, "found nothing", tmp_path / "none.ckpt")
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, other)
    fails(DataError, "a checkpoint without a record", other)
    torch.save([1], other)
    fails(DataError, "a checkpoint without a record", other)
    other.write_bytes(b"no checkpoint")
    fails(DataError, "an unreadable checkpoint", other)
    other.write_bytes(trained[1].read_bytes()[:5000])
    fails(DataError, "an unreadable checkpoint", other)
    fails(InputError, "a folder without a complete checkpoint", shards)
    fails(ConfigError, "Give --merge_lora", adapted[1])
    fails(InputError, "--source: found no directory", trained[1], source="nowhere")
    saved = torch.load(trained[1], weights_only=True)
    name = next(name for name in saved["state_dict"] if "q_norm" in name)
    torch.save(saved | {"state_dict": without(saved, name)}, other)
    fails(DataError, f"1 missing: {name.removeprefix('model.')}", other)
    torch.save(saved | {"state_dict": without(saved, "ema_weights")}, other)
    fails(ConfigError, "no moving average", other, ema=True)
    saved["mathcanvas"]["checkpoint"] = str(tmp_path / "gone")
    torch.save(saved, other)
    fails(InputError, "the checkpoint's source directory: found no directory", other)


def without(saved: dict[str, Any], part: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in saved["state_dict"].items() if part not in name}


def test_a_source_of_another_size(trained: Trained, tmp_path: Path) -> None:
    small = make_bagel(str(tmp_path / "small"), corpus=[__file__])
    model = Bagel.from_checkpoint(small.path, dtype=torch.float32)
    other = Bagel.empty(
        model.config.override(llm_num_hidden_layers=1), dtype=torch.float32, device="cpu"
    )
    other.reset_parameters(0)
    other.save_checkpoint(tmp_path / "other", source=small.path)
    with pytest.raises(DataError, match="missing: language_model"):
        export_checkpoint(
            str(trained[1]), output=str(tmp_path / "out"), source=str(tmp_path / "other")
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_output_is_guarded(trained: Trained, untrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_checkpoint(str(trained[1]), output=str(out))  # an empty directory is accepted
    before = folder_bytes(out)
    with pytest.raises(OutputError, match="--overwrite"):
        export_checkpoint(str(trained[1]), output=str(out))
    assert folder_bytes(out) == before
    export_checkpoint(str(trained[1]), output=str(out), overwrite=True, dtype="fp32")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"other files: notes\.txt"):
        export_checkpoint(str(trained[1]), output=str(out), overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert folder_bytes(out) != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("All of it.")
    with pytest.raises(OutputError, match="no export in it, but other files"):
        export_checkpoint(str(trained[1]), output=str(tmp_path / "mine"), overwrite=True)
    for folder in (untrained, untrained.parent, trained[1]):
        with pytest.raises(OutputError, match="the input of the export"):
            export_checkpoint(str(trained[1]), output=str(folder), overwrite=True)
    assert (untrained / "ae.safetensors").is_file()


def test_failed_export_leaves_no_file(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mathcanvas_lightning.training.checkpoint.export import NetworkWeights

    read, count = NetworkWeights.__getitem__, 0

    def fail(self: NetworkWeights, name: str) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 20:
            raise OSError("no space left on device")
        return read(self, name)

    monkeypatch.setattr(NetworkWeights, "__getitem__", fail)
    with pytest.raises(OSError, match="no space"):
        export_checkpoint(str(trained[1]), output=str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_overfits_eight_rows(shards: Path, tmp_path: Path) -> None:
    model = network(
        optimizer=OptimizerConfig(lr=5e-3, eps=1e-8),
        schedule=ScheduleConfig(warmup_steps=20, min_lr=1e-5),
    )
    validation = [config(shards, name="val")]
    data = training_data(config(shards), validation=validation, max_num_tokens=1000)
    before = validated(model, data)
    assert before["accuracy"] < 0.01
    assert before["mse"] > 1.0
    options = {"limit_val_batches": 0, "reload_dataloaders_every_n_epochs": 1}
    trainer = train(model, data, tmp_path, max_steps=150, **options)
    after = validated(model, data)
    assert after["accuracy"] == 1.0
    assert after["ce"] < 0.01
    assert after["mse"] < 0.65  # the noise differs from that of the training
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    export_checkpoint(str(tmp_path / "run.ckpt"), output=str(tmp_path / "out"), dtype="fp32")
    loaded = Bagel.from_checkpoint(tmp_path / "out", dtype=torch.float32)
    compare(outputs(loaded), outputs(model.network), 0.0)


def validated(model: BagelModule, data: Any) -> dict[str, float]:
    """Metric -> value on the one validation set."""
    # The training continues with the same metrics.
    trainer = Trainer(inference_mode=False, **QUIET)
    (metrics,) = trainer.validate(model, data, verbose=False)
    return {name.removeprefix("val/val/"): value for name, value in metrics.items()}


GREEDY = """
import sys
from vllm import LLM, SamplingParams, TokensPrompt

if __name__ == "__main__":
    llm = LLM(
        sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, seed=0,
        skip_tokenizer_init=False, limit_mm_per_prompt={"image": 0},
    )
    prompt = [int(word) for word in sys.argv[2].split(",")]
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
    (output,) = llm.generate([TokensPrompt(prompt_token_ids=prompt)], sampling)
    print("IDS", ",".join(map(str, output.outputs[0].token_ids)))
"""


@torch.no_grad()
def greedy(model: Bagel, ids: list[int], count: int) -> list[int]:
    """Continues token ids by our own training forward."""
    template = synthetic_pack([["answer"]], model.config)
    ids = list(ids)
    for _ in range(count):
        batch = dataclasses.replace(
            template,
            sample_lens=(len(ids),),
            splits=make_splits([len(ids)], ["causal"]),
            position_ids=torch.arange(len(ids)),
            text_ids=torch.tensor(ids),
            text_indexes=torch.arange(len(ids)),
            ce_indexes=torch.tensor([len(ids) - 1]),
            ce_label_ids=torch.tensor([0]),
            ce_weights=torch.ones(1),
        )
        output = model(batch, **synthetic_inputs(batch, model.config))
        ids.append(int(model.language_model.lm_head(output.hidden_states[-1]).argmax()))
    return ids[-count:]


@needs_engine
def test_vllm_continues_as_the_trained_network(adapted: Trained, tmp_path: Path) -> None:
    model, checkpoint = adapted
    out = tmp_path / "out"
    export_checkpoint(str(checkpoint), output=str(out), merge_lora=True, dtype="fp32")
    ids = torch.randint(0, 250, (20,), generator=torch.Generator().manual_seed(3)).tolist()
    wanted = greedy(model.network.eval(), ids, 8)
    assert len(set(wanted)) >= 2
    script = tmp_path / "greedy.py"
    script.write_text(GREEDY)
    words, env = (script, out, ",".join(map(str, ids))), os.environ | ONE_GIB | ONE_PROCESS
    done = run_python(*words, timeout=900, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("IDS "))
    assert [int(word) for word in line.removeprefix("IDS ").split(",")] == wanted
