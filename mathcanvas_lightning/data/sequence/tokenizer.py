"""The Qwen2 tokenizer of a checkpoint, and the ids of its special tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.paths import plain_path
from mathcanvas_lightning.errors import ConfigError

VOCABULARIES = ("tokenizer.json", "vocab.json")
BYTE_TOKENIZER = Path(__file__).parent / "byte_tokenizer"
"""Folder of a tokenizer of single bytes, for a first try without a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids of the special tokens."""

    bos: int
    """`<|im_start|>`, before each text."""
    eos: int
    """`<|im_end|>`, after each text."""
    start_of_image: int
    """`<|vision_start|>`, before each image; as an action: an image follows."""
    end_of_image: int
    """`<|vision_end|>`, after each image."""
    end_of_text: int
    """`<|endoftext|>`, ends the answer."""


SPELLINGS = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
    "end_of_text": "<|endoftext|>",
}


class TextTokenizer:
    """Encodes texts; a text that spells a special token is encoded as ordinary text.

    Args:
        folder: Checkpoint directory with tokenizer files; None for the tokenizer of single bytes.

    Raises:
        ConfigError: If there is no tokenizer, or it lacks a special token.
    """

    def __init__(self, folder: str | None) -> None:
        folder = str(BYTE_TOKENIZER) if folder is None else plain_path(folder)
        self.folder = folder
        self._tokenizer = _load(folder)
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        self.special = _special_tokens(folder, self._backend)
        self.num_ids: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.digest = hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return TextTokenizer, (self.folder,)

    def token_id(self, spelling: str) -> int | None:
        """Id of a token; None if there is no such token."""
        found: int | None = self._backend.token_to_id(spelling)
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text


def _load(folder: str) -> Any:
    if not any((Path(folder) / name).is_file() for name in VOCABULARIES):
        raise ConfigError(
            f"tokenizer {folder}",
            found="no tokenizer files" if Path(folder).is_dir() else "no such folder",
            wanted=f"a checkpoint directory with {' or '.join(VOCABULARIES)}",
            remedy="Give the folder of a checkpoint, or make one with mathcanvas make-bagel.",
        )
    from transformers import Qwen2Tokenizer  # takes a second to import

    return Qwen2Tokenizer.from_pretrained(folder)


def _special_tokens(folder: str, backend: Any) -> SpecialTokens:
    ids = {name: backend.token_to_id(spelling) for name, spelling in SPELLINGS.items()}
    missing = [SPELLINGS[name] for name, token in ids.items() if token is None]
    if missing:
        raise ConfigError(
            f"tokenizer {folder}",
            found=f"no token {', '.join(missing)}",
            wanted="the special tokens of BAGEL",
            remedy="Use the tokenizer files of a BAGEL checkpoint.",
        )
    for name, token in ids.items():
        if token in backend.encode(SPELLINGS[name], add_special_tokens=False).ids:
            raise ConfigError(
                f"tokenizer {folder}",
                found=f"{SPELLINGS[name]} among the ordinary tokens",
                wanted='"special": true for this token',
                remedy="Mark it in tokenizer.json and tokenizer_config.json; otherwise a text that "
                "spells it would act as a command.",
            )
    return SpecialTokens(**ids)
