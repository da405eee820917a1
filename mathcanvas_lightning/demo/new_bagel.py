"""New small BAGEL models: random weights from a seed, and a tokenizer trained on texts."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from mathcanvas_lightning.blockmoving.generate import generate_blockmoving
from mathcanvas_lightning.blockmoving.levels import LEVELS
from mathcanvas_lightning.common.atomic import copy_whole, make_folder, write_json
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError, check_settings
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import DRAWING_VAE, BagelConfig
from mathcanvas_lightning.model.saving import TOKENIZER_FILES
from mathcanvas_lightning.model.vae import VAE_FILE, save_random_vae

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenization before byte-level BPE (from its published tokenizer.json)."""
NUM_DEFAULT_TASKS = 300
"""BlockMoving tasks whose texts train the tokenizer by default."""
WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights that the package ships."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBagel:
    """A new checkpoint directory."""

    path: str
    num_parameters: int
    """Parameters of the network, without the autoencoder."""
    num_words: int
    """Size of the tokenizer's vocabulary, with special tokens."""
    is_pretrained: bool


def make_bagel(
    output: str,
    *,
    preset: str = "tiny",
    seed: int = 0,
    corpus: Sequence[str] = (),
    dtype: str = "float32",
    pretrained: bool = False,
) -> NewBagel:
    """Makes a small BAGEL checkpoint, untrained or pretrained, with tokenizer and autoencoder.

    Args:
        output: Directory to write.
        preset: Size of the model: tiny, small or 7b.
        seed: Seed of all weights.
        corpus: Text files to train the tokenizer on; by default generated BlockMoving texts.
        dtype: Data type of the weights: float32 or bfloat16.
        pretrained: Take the weights and the tokenizer that the package ships, for the preset tiny:
            they describe and draw pictures of level 1 (see tools/pretrain_demo.sh).

    Returns:
        The directory and the sizes of model and tokenizer.

    Raises:
        ConfigError: If the preset or dtype is unknown, or there are no such pretrained weights.
        OutputError: If the directory holds another model.
        InputError: If a text file can't be read.
    """
    config = BagelConfig.preset(preset)
    is_known = dtype in ("float32", "bfloat16")
    wanted = ("--dtype", repr(dtype), is_known, "float32 or bfloat16")
    check_settings(wanted, remedy="Choose one of them.")
    stored = torch.float32 if dtype == "float32" else torch.bfloat16
    _check_output(output, config)
    if pretrained:
        return _copy_pretrained(preset, local_path(output), corpus, stored)
    texts = [_read(path) for path in corpus] or _blockmoving_texts(seed)
    tokenizer = train_tokenizer(texts, config.llm.vocab_size)
    model = Bagel.empty(config, dtype=stored, device="cpu")
    model.reset_parameters(seed)
    model.save_checkpoint(output, dtype=stored)
    save_tokenizer(tokenizer, local_path(output))
    _save_vae(local_path(output), config, seed)
    return NewBagel(
        path=output,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_words=tokenizer.get_vocab_size(),
        is_pretrained=False,
    )


def _check_output(output: str, config: BagelConfig) -> None:
    """Refuses a folder with a model of other sizes; files of other names stay."""
    if not output:
        raise ConfigError(
            "--output",
            found="an empty path",
            wanted="a directory",
            remedy="Name it, or write . for the current one.",
        )
    folder = local_path(output)
    make_folder(folder)
    found = [name for name in (*config.files(), *TOKENIZER_FILES) if (folder / name).exists()]
    try:
        old = BagelConfig.from_directory(folder) if found else config
        is_same = (old.llm, old.vit) == (config.llm, config.vit)
    except ConfigError:
        is_same = False
    if not is_same:
        raise OutputError(
            str(folder),
            found=f"another model ({', '.join(found)})",
            wanted="an empty directory, or an earlier model of the same sizes",
            remedy="Choose another --output.",
        )


def _copy_pretrained(
    preset: str, target: Path, corpus: Sequence[str], dtype: torch.dtype
) -> NewBagel:
    source = WEIGHTS / preset
    if not source.is_dir() or corpus:
        raise ConfigError(
            "--pretrained",
            found="a corpus for a new tokenizer" if corpus else f"the preset {preset}",
            wanted="the preset tiny, with its own tokenizer",
            remedy="Leave out --pretrained for random weights, or --corpus.",
        )
    model = Bagel.from_checkpoint(source, dtype=dtype, device="cpu")
    model.save_checkpoint(target, dtype=dtype)
    # Copies, no links: who edits a file of the model must not edit the package.
    for file in [WEIGHTS / VAE_FILE, *(source / name for name in TOKENIZER_FILES)]:
        if file.is_file():
            copy_whole(file, target / file.name)
    return NewBagel(
        path=str(target),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_words=Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab_size(),
        is_pretrained=True,
    )


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer with Qwen2's pre-tokenization.

    Args:
        texts: Training texts.
        vocab_size: Maximum number of tokens, with special tokens.

    Returns:
        The tokenizer; special tokens have the last ids.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the files of a Qwen2 tokenizer."""
    with tempfile.TemporaryDirectory() as new:
        tokenizer.save(str(Path(new, "tokenizer.json")))
        tokenizer.model.save(new)
        # The files may be hard links to those of another model, which must not change.
        for file in sorted(Path(new).iterdir()):
            copy_whole(file, folder / file.name)
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, "special": True}
            for token in SPECIAL_TOKENS
        },
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 32768,
        "split_special_tokens": False,
    }
    write_json(folder / "tokenizer_config.json", config)


def _save_vae(folder: Path, config: BagelConfig, seed: int) -> None:
    """Writes the autoencoder that the package ships where it fits, else a random one."""
    if config.vae == DRAWING_VAE:
        copy_whole(WEIGHTS / VAE_FILE, folder / VAE_FILE)
    else:
        save_random_vae(folder, config.vae, torch.Generator().manual_seed(seed))


def _read(path: str) -> str:
    try:
        return local_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            path, found=str(error), wanted="a text file in UTF-8", remedy="Check --corpus."
        ) from None


def _blockmoving_texts(seed: int) -> list[str]:
    """Returns chains of thought and descriptions of all levels."""
    texts = []
    with tempfile.TemporaryDirectory() as folder:
        for level in LEVELS:
            report = generate_blockmoving(
                folder,
                num_tasks=NUM_DEFAULT_TASKS // len(LEVELS),
                seed=seed,
                level=level,
                extra="reason=100",
                view_px=48,
                num_workers=0,
                progress=False,
            )
            texts += _strings(json.loads(Path(report.source_file).read_text(encoding="utf-8")))
            lines = Path(folder, "reason", "reason.jsonl").read_text(encoding="utf-8").splitlines()
            texts += _strings([json.loads(line) for line in lines])
    return texts


def _strings(value: Any) -> list[str]:
    """Returns all texts of a JSON value."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]
