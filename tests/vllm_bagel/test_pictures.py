"""Image blocks equal the items of the native generator."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from jinja2 import Environment
from PIL import Image

from mathcanvas_lightning.data.sequence.pack import pack_samples
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.bagel.contexts import ItemMaker
from mathcanvas_lightning.model.vae import pack_latents
from mathcanvas_lightning.vllm_bagel import CHAT_TEMPLATE, PAD, is_bagel
from mathcanvas_lightning.vllm_bagel.blocks import ImageBlock, engine_prompt
from mathcanvas_lightning.vllm_bagel.pictures import PictureRules, blocks_of_pack
from tests.conftest import golden_folder, write_json
from tests.generation.drawing import VAE_TRANSFORM, VIT_TRANSFORM, parts, picture

MODEL, VAE, TOKENIZER = parts()
MAKER = ItemMaker(MODEL.config, TOKENIZER, VAE_TRANSFORM, VIT_TRANSFORM)
RULES = PictureRules(
    geometry=MODEL.config.geometry,
    special=TOKENIZER.special,
    vae_transform=VAE_TRANSFORM,
    vit_transform=VIT_TRANSFORM,
)


@pytest.mark.parametrize("size", [(48, 32), (20, 90), (200, 100)])
def test_a_picture_equals_the_item(size: tuple[int, int]) -> None:
    image = picture(1, *size)
    pack = pack_samples(
        [MAKER.image(image).content, MAKER.image(image, for_vae=False).content],
        MAKER.geometry,
        TOKENIZER.special,
    )
    vae, vit, again = blocks_of_pack(pack, pack_latents(VAE, pack, MODEL.config.latent_patch_size))
    assert (vae.kind, vit.kind, again.kind) == ("vae", "vit", "vit")
    own = RULES.vit_block(image)
    assert own.digest == vit.digest == again.digest != vae.digest
    assert own.features.dtype == np.uint8
    assert np.array_equal(own.features, vit.features)
    assert np.array_equal(own.position_ids, vit.position_ids)
    assert vae.num_tokens + vit.num_tokens == MAKER.image_tokens(size)
    assert vae.features.shape[1] == MODEL.config.latent_dim
    sent = pickle.loads(pickle.dumps(vae))
    assert sent.digest == vae.digest
    assert np.array_equal(sent.features, vae.features)


def test_a_digest_depends_on_everything() -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    ids = np.arange(2)
    blocks = [
        ImageBlock(kind="vae", features=values, position_ids=ids),
        ImageBlock(kind="vit", features=values, position_ids=ids),
        ImageBlock(kind="vae", features=values + 1, position_ids=ids),
        ImageBlock(kind="vae", features=values, position_ids=ids + 1),
    ]
    assert len({block.digest for block in blocks}) == 4


def test_prompt() -> None:
    block = RULES.vit_block(picture(1))
    assert engine_prompt([(1, 2), (3,)], 9) == {"prompt_token_ids": [1, 2, 3]}
    prompt = engine_prompt([(1,), block, block, (2,)], 9)
    assert prompt["prompt_token_ids"] == [1, 9, 9, 2]
    assert prompt["multi_modal_data"] == {"image": [block, block]}
    assert prompt["multi_modal_uuids"] == {"image": [block.digest] * 2}


def test_a_picture_beyond_the_position_table() -> None:
    small = replace(RULES, geometry=replace(RULES.geometry, max_vit_side=2))
    with pytest.raises(InputError, match=r"at most 2 per side.*mm_processor_kwargs"):
        small.vit_block(picture(1))
    assert replace(small, interpolate_positions=True).vit_block(picture(1)).num_tokens > 2


def test_grey_pictures() -> None:
    grey = Image.new("L", (40, 40), 128)
    assert RULES.vit_block(grey).digest == RULES.vit_block(grey.convert("RGB")).digest


def test_directory() -> None:
    from mathcanvas_lightning.vllm_bagel.directory import read_directory

    folder = golden_folder() / "tiny_bagel"
    if not folder.is_dir():
        pytest.skip("no golden files")
    directory = read_directory(str(folder))
    sides = directory.config.vit_max_num_patch_per_side, directory.config.max_latent_size
    assert directory.max_block_tokens == max(sides) ** 2 + 2
    assert directory.picture_rules({}).vit_transform.image_stride == 14
    rules = directory.picture_rules({"vit_transform": {"max_image_size": 56, "min_image_size": 28}})
    assert rules.vit_transform.max_image_size == 56
    with pytest.raises(ConfigError, match=r"mm_processor_kwargs\.size"):
        directory.picture_rules({"size": 3})
    with pytest.raises(ConfigError, match=r"vit_transform.*nothing"):
        directory.picture_rules({"vit_transform": {"nothing": 3}})


def test_is_bagel(tmp_path: object) -> None:
    folder = golden_folder() / "tiny_bagel"
    if folder.is_dir():
        assert is_bagel(str(folder))
    assert not is_bagel("some/model")
    write_json(tmp_path / "config.json", {"model_type": "qwen2"})  # type: ignore[operator]
    assert not is_bagel(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps([1]))  # type: ignore[operator]
    assert not is_bagel(str(tmp_path))


def render(*messages: tuple[str, object]) -> str:
    """The chat template as transformers renders it."""
    template = Environment(autoescape=False).from_string(CHAT_TEMPLATE.read_text())
    content = [{"role": role, "content": content} for role, content in messages]
    return template.render(messages=content, add_generation_prompt=True)


def test_chat_template() -> None:
    parts: list[dict[str, str]] = [
        {"type": "text", "text": " First "},
        {"type": "image"},
        {"type": "text", "text": "  "},
        {"type": "text", "text": "?"},
    ]
    assert render(("system", "Be brief."), ("user", parts)) == (
        f"<|im_start|>Be brief.<|im_end|><|im_start|>First<|im_end|>{PAD}"
        "<|im_start|>?<|im_end|><|im_start|>"
    )


def test_special_tokens_of_users_stay_text() -> None:
    found = render(("user", f"a {PAD} b <|im_end|>"))
    assert found.count("<|") == 3
    assert PAD not in found
