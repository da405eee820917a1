"""Checkpoint directories: saved and loaded unchanged; errors list all keys that don't match."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mathcanvas_lightning.errors import ConfigError, DataError
from mathcanvas_lightning.model import saving
from mathcanvas_lightning.model.adapters import LoRASettings, add_lora
from mathcanvas_lightning.model.bagel import COMPONENTS, Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.basic import sincos_table
from mathcanvas_lightning.model.parallelize import Parallelism, Precision, build_network
from mathcanvas_lightning.model.saving import write_safetensors
from mathcanvas_lightning.model.synthetic import synthetic_inputs, synthetic_pack
from mathcanvas_lightning.model.vae import LatentVAE
from tests.conftest import run_python

CONFIG = BagelConfig.preset("tiny", llm_vocab_size=128, llm_num_hidden_layers=1)
PACK = [["question", "clean", "vit", "answer", "noisy"]]


@pytest.fixture
def model() -> Bagel:
    model = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
    model.reset_parameters(0)
    return model


@pytest.fixture
def saved(model: Bagel, tmp_path: Path) -> Path:
    model.save_checkpoint(tmp_path / "saved", dtype=torch.float32)
    return tmp_path / "saved"


def load(path: Path, **options: Any) -> Bagel:
    return Bagel.from_checkpoint(path, **{"dtype": torch.float32, **options})


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces, adds or (None) removes tensors of a checkpoint; `__` stands for a dot."""
    file = path / "ema.safetensors"
    state = load_file(file)
    for name, tensor in tensors.items():
        state.pop(name.replace("__", "."), None)
        if tensor is not None:
            state[name.replace("__", ".")] = tensor
    save_file(state, file)


def test_save_and_load(model: Bagel, saved: Path) -> None:
    loaded = load(saved)
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    batch = synthetic_pack(PACK, CONFIG)
    inputs = synthetic_inputs(batch, CONFIG)
    assert torch.equal(loaded(batch, **inputs).hidden_states, model(batch, **inputs).hidden_states)


def test_reference_checkpoint_is_saved_unchanged(golden: Path, tmp_path: Path) -> None:
    source = golden / "tiny_bagel"
    if not source.exists():
        pytest.skip(f"no {source}")
    load(source).save_checkpoint(tmp_path / "copy", dtype=torch.float32, source=source)
    ours, theirs = (load_file(p / "ema.safetensors") for p in (tmp_path / "copy", source))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("ae.safetensors", "tokenizer.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    for name in ("llm_config.json", "vit_config.json"):
        wanted = json.loads((source / name).read_text())
        written = json.loads((tmp_path / "copy" / name).read_text())
        assert {key: written[key] for key in wanted if key in written} == {
            key: wanted[key] for key in wanted if key in written
        }
    assert load(tmp_path / "copy").config == load(source).config
    LatentVAE.from_checkpoint(tmp_path / "copy", BagelConfig.from_directory(source).vae)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, model: Bagel, tmp_path: Path) -> None:
    model.save_checkpoint(tmp_path, dtype=dtype)
    state = load_file(tmp_path / "ema.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor.to(dtype))
    assert {p.dtype for p in load(tmp_path, dtype=dtype).parameters()} == {dtype}
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


def test_written_files_are_safetensors(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 5), "b": torch.arange(4.0), "scalar": torch.tensor(2.5)}
    state["transposed"] = state["a"].T
    write_safetensors(tmp_path / "x.safetensors", state, torch.float32)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_written_in_shards_with_an_index(
    model: Bagel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of at most the given size that both our loader and transformers' index rule read."""
    state = model.state_dict()
    sizes = {name: tensor.numel() * 4 for name, tensor in state.items()}
    limit = max(sizes.values()) + 1000
    monkeypatch.setattr(saving, "MAX_SHARD_BYTES", limit)
    model.save_checkpoint(tmp_path, dtype=torch.float32)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) >= sum(sizes.values()) // limit > 1
    assert files[0] == f"ema-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == state.keys()
    for file in files:
        stored = load_file(tmp_path / file)
        assert {name for name, f in index["weight_map"].items() if f == file} == stored.keys()
        assert sum(tensor.nbytes for tensor in stored.values()) <= limit
    loaded = load(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    monkeypatch.undo()
    model.save_checkpoint(tmp_path, dtype=torch.float32)  # one file again; the others must go
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["ema.safetensors"]


@pytest.mark.parametrize(
    ("file", "others"),
    [
        ("ema.safetensors", []),
        ("model.safetensors.index.json", ["ema.safetensors"]),
    ],
)
def test_lfs_pointers_are_named(file: str, others: list[str], saved: Path) -> None:
    for other in others:
        (saved / other).unlink()
    (saved / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(DataError, match=rf"{file}: found a Git LFS pointer"):
        load(saved)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": 3}'])
def test_damaged_index(content: str, saved: Path) -> None:
    (saved / "ema.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DataError, match=r"index\.json: found no index of weight files"):
        load(saved)


def test_quantized_weights_are_refused(model: Bagel, saved: Path) -> None:
    state = load_file(saved / "ema.safetensors")
    state["llm2vae.weight"] = state["llm2vae.weight"].to(torch.int8)
    save_file(state, saved / "ema.safetensors")
    with pytest.raises(DataError, match="weight of type I8"):
        load(saved)


def test_sharded_weights(model: Bagel, saved: Path) -> None:
    state = load_file(saved / "ema.safetensors")
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: state[name] for name in part}, saved / file)
        weight_map |= dict.fromkeys(part, file)
    (saved / "ema.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load(saved)
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in model.state_dict().items())


def test_all_keys_that_do_not_match_are_listed(saved: Path) -> None:
    change(
        saved,
        connector__fc1__bias=None,
        llm2vae__weight=None,
        connector__fc2__weight=torch.zeros(3, 4),
        something__else=torch.zeros(1),
    )
    with pytest.raises(DataError) as caught:
        load(saved)
    text = str(caught.value)
    assert "2 missing: connector.fc1.bias; llm2vae.weight" in text
    assert "1 unexpected: something.else" in text
    assert "connector.fc2.weight: [3, 4] in the file, [128, 128] in the model" in text


def test_tables_are_rebuilt_when_absent(saved: Path) -> None:
    change(saved, latent_pos_embed__pos_embed=None, vit_pos_embed__pos_embed=None)
    loaded = load(saved)
    assert loaded.config.max_latent_size == CONFIG.max_latent_size
    wanted = sincos_table(CONFIG.max_latent_size, CONFIG.llm.hidden_size)
    assert torch.equal(loaded.latent_pos_embed.pos_embed, wanted)


def test_weights_win_over_the_config(saved: Path) -> None:
    change(saved, latent_pos_embed__pos_embed=sincos_table(5, CONFIG.llm.hidden_size))
    assert load(saved).config.max_latent_size == 5
    larger = load(saved, max_latent_size=7)
    assert larger.config.max_latent_size == 7
    wanted = sincos_table(7, CONFIG.llm.hidden_size)
    assert torch.equal(larger.latent_pos_embed.pos_embed, wanted)


def test_parts_can_start_from_random_weights(model: Bagel, saved: Path) -> None:
    parts = [part for part in COMPONENTS if part != "connector"]
    loaded = load(saved, components=parts, seed=5)
    for name, tensor in model.state_dict().items():
        is_matrix = tensor.ndim > 1
        same = torch.equal(loaded.state_dict()[name], tensor)
        assert same == (not (name.startswith("connector") and is_matrix)), name
    with pytest.raises(ConfigError, match="components"):
        load(saved, components=["conector"])


def test_nothing_to_load(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(DataError, match=r"wanted ema\.safetensors"):
        load(tmp_path / "none")
    (saved / "llm_config.json").unlink()
    with pytest.raises(ConfigError, match=r"llm_config\.json"):
        load(saved)


def test_damaged_weights(saved: Path) -> None:
    file = saved / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="a damaged file"):
        load(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(value: float, model: Bagel, saved: Path) -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    weight = model.state_dict()[name].clone()
    weight[3, :2] = value
    change(saved, **{name.replace(".", "__"): weight})
    message = rf"ema\.safetensors: found {re.escape(name)} with 2 values that are NaN or infinite"
    with pytest.raises(DataError, match=message):
        load(saved)
    with pytest.raises(DataError, match=message):
        build_network(
            CONFIG,
            str(saved),
            None,
            device=torch.device("cpu"),
            precision=Precision(params=torch.float32, compute=torch.float32),
            parallelism=Parallelism(),
            prepare=lambda _: None,
            seed=0,
        )


def test_adapters_must_be_absorbed_before_saving(model: Bagel, tmp_path: Path) -> None:
    add_lora(model, LoRASettings(rank=2))
    with pytest.raises(ConfigError, match="absorb_lora"):
        model.save_checkpoint(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_start_from_qwen2(tied: bool, tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    qwen = Qwen2ForCausalLM(config)
    qwen.save_pretrained(tmp_path)
    model = Bagel.from_qwen2(
        tmp_path,
        dtype=torch.float32,
        vit_hidden_size=32,
        vit_num_hidden_layers=2,
        vit_num_attention_heads=2,
    )
    state, source = model.language_model.state_dict(), qwen.state_dict()
    assert model.config.llm.vocab_size == 100
    assert model.config.llm.rope_theta == 5000.0
    for name, tensor in source.items():
        assert torch.equal(state[name], tensor), name
    for name, tensor in state.items():
        if "_moe_gen" in name:
            assert torch.equal(tensor, state[name.replace("_moe_gen", "")])
        elif re.search("[qk]_norm", name):
            assert torch.equal(tensor, torch.ones_like(tensor))
    assert not model.llm2vae.weight.any()
    batch = synthetic_pack(PACK, model.config)
    inputs = synthetic_inputs(batch, model.config)
    assert torch.isfinite(model(batch, **inputs).hidden_states).all()


def test_rotary_scaling_is_refused(saved: Path) -> None:
    config = json.loads((saved / "llm_config.json").read_text())
    for key in ("rope_scaling", "rope_parameters"):
        changed = config | {key: {"rope_type": "yarn", "factor": 4.0}}
        (saved / "llm_config.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match="'yarn'"):
            load(saved)


MEASURE = """
import sys, torch
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
def status(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name))
    return int(line.split()[1]) / 1024
Bagel.empty(BagelConfig.preset("tiny"), dtype=torch.float32, device="cpu")  # imports what it needs
before = status("VmRSS")
model = Bagel.from_checkpoint(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
largest = max(p.numel() * 4 for p in model.parameters()) / 2**20
print(size, largest, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_needs_one_copy_and_one_tensor(dtype: str, tmp_path: Path) -> None:
    config = BagelConfig.preset("small", llm_vocab_size=4096)
    model = Bagel.empty(config, dtype=torch.float32, device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    model.save_checkpoint(tmp_path, dtype=torch.float32)
    del model
    assert (tmp_path / "ema.safetensors").stat().st_size > 300 * 2**20
    done = run_python("-c", MEASURE, tmp_path, dtype, check=True)
    size, largest, grown = map(float, done.stdout.split())
    assert grown < size + largest + 120  # up to 64 MiB of the mapped file are resident
