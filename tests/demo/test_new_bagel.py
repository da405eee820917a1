"""New models: complete, reproducible, with a tokenizer that Qwen2's class reads."""

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mathcanvas_lightning.demo.new_bagel import SPECIAL_TOKENS, make_bagel
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.synthetic import synthetic_inputs, synthetic_pack
from mathcanvas_lightning.model.vae import LatentVAE
from tests.conftest import RunTool, folder_bytes

TEXT = "Step 1: the red block at (0,1,2) moves +x.\n\n Größe, 北京, it's 3.14!  "


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    (folder / "corpus.txt").write_text("The red block moves, and the blue block falls.\n" * 50)
    make_bagel(str(folder / "model"), corpus=[str(folder / "corpus.txt")], seed=4)
    return folder / "model"


@pytest.mark.filterwarnings("ignore")
def test_tokenizer_is_qwen2s(untrained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert ids == Tokenizer.from_file(str(untrained / "tokenizer.json")).encode(TEXT).ids
    assert len(tokenizer("The red block")["input_ids"]) == 3
    special = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert special == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    assert len(tokenizer) <= Bagel.from_checkpoint(untrained).config.llm.vocab_size


def test_model_and_autoencoder_load_and_run(untrained: Path) -> None:
    model = Bagel.from_checkpoint(untrained, dtype=torch.float32)
    vae = LatentVAE.from_checkpoint(untrained, model.config.vae)
    batch = synthetic_pack([["question", "vit", "noisy", "answer"]], model.config)
    output = model(batch, **synthetic_inputs(batch, model.config))
    assert torch.isfinite(output.ce).all()
    side = model.config.geometry.latent_patch_px
    image = vae.decode(vae.encode([torch.zeros(3, 2 * side, side)], None)[0][None])
    assert image.shape == (1, 3, 2 * side, side)
    assert torch.isfinite(image).all()


def test_home_folder(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(untrained.parent / "corpus.txt", tmp_path)
    make_bagel("~/model", corpus=["~/corpus.txt"], seed=4)
    assert folder_bytes(tmp_path / "model") == folder_bytes(untrained)
    model = Bagel.from_checkpoint("~/model")
    LatentVAE.from_checkpoint("~/model", model.config.vae)
    model.save_checkpoint("~/saved", source="~/model")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    assert not (tmp_path / "~").exists()


def test_seed_decides_everything(untrained: Path, tmp_path: Path) -> None:
    corpus = [str(untrained.parent / "corpus.txt")]
    make_bagel(str(tmp_path / "same"), corpus=corpus, seed=4)
    make_bagel(str(tmp_path / "other"), corpus=corpus, seed=5)
    assert folder_bytes(tmp_path / "same") == folder_bytes(untrained)
    other = folder_bytes(tmp_path / "other")
    assert other["ema.safetensors"] != (untrained / "ema.safetensors").read_bytes()
    assert other["tokenizer.json"] == (untrained / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_command_with_generated_texts(tmp_path: Path, run_tool: RunTool) -> None:
    done = run_tool("make_tiny_bagel.py", "--output", tmp_path / "m", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    tokenizer = Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    assert len(tokenizer.encode(" red block").ids) == 2
    assert next(Bagel.from_checkpoint(tmp_path / "m").parameters()).dtype == torch.bfloat16


def test_a_new_model_changes_no_other_one(tmp_path: Path) -> None:
    """An export shares files with its source by hard links; they are replaced, not rewritten."""
    make_bagel(str(tmp_path / "first"), corpus=[__file__])
    first = folder_bytes(tmp_path / "first")
    (tmp_path / "second").mkdir()
    for file in (tmp_path / "first").iterdir():
        (tmp_path / "second" / file.name).hardlink_to(file)
    make_bagel(
        str(tmp_path / "second"), seed=1, corpus=[str(Path(__file__).parents[1] / "warm.py")]
    )
    assert folder_bytes(tmp_path / "first") == first
    assert folder_bytes(tmp_path / "second")["tokenizer.json"] != first["tokenizer.json"]


def test_other_models_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("of another model")
    with pytest.raises(OutputError, match=r"another model \(tokenizer\.json\)"):
        make_bagel(str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    with pytest.raises(ConfigError, match="empty path"):
        make_bagel("")


@pytest.mark.slow
def test_a_model_is_made_again(tmp_path: Path) -> None:
    for options in ({"pretrained": True}, {}, {"pretrained": True}):
        make_bagel(str(tmp_path), **options)
        assert all(file.stat().st_nlink == 1 for file in tmp_path.iterdir())
    with pytest.raises(OutputError, match="another model"):
        make_bagel(str(tmp_path), preset="small")


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset"):
        make_bagel(str(tmp_path), preset="huge")
    with pytest.raises(ConfigError, match="--dtype"):
        make_bagel(str(tmp_path), dtype="int8")
    with pytest.raises(InputError, match=r"none\.txt"):
        make_bagel(str(tmp_path), corpus=["none.txt"])


@pytest.mark.slow
def test_pretrained_weights_describe_a_picture_that_was_never_trained(tmp_path: Path) -> None:
    from mathcanvas_lightning import BagelBackend, Sampling
    from mathcanvas_lightning.blockmoving.drawing import draw_state
    from mathcanvas_lightning.blockmoving.levels import LEVELS
    from mathcanvas_lightning.blockmoving.parts import different_puzzles
    from mathcanvas_lightning.blockmoving.wording.short import show_stack
    from mathcanvas_lightning.data.images.resize import ImageTransform

    made = make_bagel(str(tmp_path / "base"), pretrained=True)
    assert made.is_pretrained
    bagel = BagelBackend(
        str(tmp_path / "base"),
        mode="understanding",
        vae_transform=ImageTransform(max_image_size=96, min_image_size=48, image_stride=16),
        vit_transform=ImageTransform(max_image_size=112, min_image_size=56, image_stride=14),
    )
    level = LEVELS[1]
    for puzzle in different_puzzles(level, "test", 5, 3):
        picture = draw_state(puzzle.final, view_px=level.view_px, views=level.views)
        answer = bagel.reason(["Describe.", picture], sampling=Sampling(max_tokens=40))
        assert answer.text == f"{show_stack(puzzle.final)}."


def test_only_tiny_has_pretrained_weights(tmp_path: Path) -> None:
    for options in ({"preset": "small"}, {"corpus": [__file__]}):
        with pytest.raises(ConfigError, match="--pretrained"):
            make_bagel(str(tmp_path / "model"), pretrained=True, **options)
