"""A tiny chat model that reads pictures: Idefics3 with random weights, for real engines on the CPU.

It is the architecture for which vLLM needs no torchvision. Its answers mean nothing, but they
depend on texts, on pictures and on their order.
"""

import warnings
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

IMAGE_PX, PATCH_PX, SCALE = 56, 14, 2
TOKENS_PER_TILE = (IMAGE_PX // PATCH_PX) ** 2 // SCALE**2
SPECIAL = ["<pad>", "<s>", "<end_of_utterance>", "<image>", "<fake_token_around_image>"]
SPECIAL += ["<global-img>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))]
TEMPLATE = (
    "<s>{% if terse %}Be terse. {% endif %}"
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_tiny_idefics3(folder: Path, seed: int = 0) -> None:
    """Writes model, tokenizer, processor and chat template.

    Args:
        folder: To write.
        seed: Decides the weights.
    """
    tokenizer = _tokenizer()
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * IMAGE_PX}, max_image_size={"longest_edge": IMAGE_PX}
    )
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=TOKENS_PER_TILE, chat_template=TEMPLATE
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor.save_pretrained(folder)
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(_config(tokenizer))
        with torch.no_grad():
            for parameter in model.parameters():  # initial weights repeat one token
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and special tokens."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end_of_utterance>",
        chat_template=TEMPLATE,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> Idefics3Config:
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["<end_of_utterance>"],
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_PX,
        "patch_size": PATCH_PX,
    }
    return Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=SCALE,
        image_token_id=ids["<image>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=False,
    )
