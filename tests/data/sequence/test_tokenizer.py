"""The tokenizer: special ids, and texts that spell special tokens."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from mathcanvas_lightning.data.sequence.tokenizer import SPELLINGS, TextTokenizer
from mathcanvas_lightning.errors import ConfigError
from tests.data.make_rows import TOKENIZER


def test_texts_that_spell_special_tokens_are_ordinary_text() -> None:
    tokenizer = TextTokenizer(TOKENIZER)
    special = {getattr(tokenizer.special, name) for name in SPELLINGS}
    assert len(special) == 5
    for spelling in SPELLINGS.values():
        text = f"Write {spelling} now."
        ids = tokenizer.encode(text)
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.special.bos]) == "<|im_start|>"


def test_pickling_for_workers() -> None:
    tokenizer = TextTokenizer(TOKENIZER)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.digest == tokenizer.digest
    assert copy.encode("Area <|im_end|>") == tokenizer.encode("Area <|im_end|>")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer files"):
        TextTokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        TextTokenizer(str(tmp_path / "none"))


def altered(tmp_path: Path, alter: str) -> str:
    folder = Path(shutil.copytree(TOKENIZER, tmp_path / "tokenizer"))
    path = folder / "tokenizer.json"
    tokens = json.loads(path.read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for token in tokens["added_tokens"]:
        if token["content"] == "<|vision_start|>":
            token["special" if alter == "ordinary" else "content"] = (
                False if alter == "ordinary" else "<|other|>"
            )
    for token in config.get("added_tokens_decoder", {}).values():
        if token["content"] == "<|vision_start|>":
            token["special" if alter == "ordinary" else "content"] = (
                False if alter == "ordinary" else "<|other|>"
            )
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if key in config:
            config[key] = [t for t in config[key] if t != "<|vision_start|>"]
    path.write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("alter", "message"), [("missing", "no token"), ("ordinary", "among the ordinary tokens")]
)
def test_bad_special_tokens(alter: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TextTokenizer(altered(tmp_path, alter))
    assert "<|vision_start|>" in str(caught.value)


def test_single_bytes_by_default() -> None:
    tokenizer = TextTokenizer(None)
    assert tokenizer.decode(tokenizer.encode("Höhe 3 <|im_end|>")) == "Höhe 3 <|im_end|>"
    assert len(tokenizer.encode("abc")) == 3
    assert pickle.loads(pickle.dumps(tokenizer)).digest == tokenizer.digest
