"""Floating point operations of a pack; attention counts only the pairs the mask allows."""

from mathcanvas_lightning.batch import PackedBatch
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.attention import count_attended_pairs
from mathcanvas_lightning.model.layers.basic import TIME_FREQUENCIES

BACKWARD_FACTOR = 2
"""Cost of a backward pass over that of a forward pass: gradients of inputs and of weights."""


def forward_flops(config: BagelConfig, batch: PackedBatch) -> int:
    """Counts the operations of a forward pass; a multiply-add counts as two.

    Args:
        config: Sizes of the model.
        batch: The pack.

    Returns:
        Operations of matrix products and attention in decoder, heads, ViT and connector. Norms,
        embeddings and the autoencoder are not counted.
    """
    llm, vit = config.llm, config.vit
    kv = llm.num_key_value_heads * llm.head_dim
    layer_weights = llm.hidden_size * (2 * llm.hidden_size + 2 * kv + 3 * llm.intermediate_size)
    pairs = count_attended_pairs(batch.sample_lens, batch.splits)
    decoder = llm.num_hidden_layers * (
        2 * batch.sequence_length * layer_weights + 4 * pairs * llm.hidden_size
    )
    vit_weights = vit.hidden_size * (4 * vit.hidden_size + 2 * vit.intermediate_size)
    vit_pairs = sum(length**2 for length in batch.vit_lens)
    patches = len(batch.vit_indexes)
    encoder = vit.num_layers_used * (2 * patches * vit_weights + 4 * vit_pairs * vit.hidden_size)
    ends = (
        len(batch.ce_indexes) * llm.hidden_size * llm.vocab_size
        + len(batch.latent_indexes) * llm.hidden_size * (config.latent_dim + TIME_FREQUENCIES)
        + len(batch.latent_indexes) * llm.hidden_size**2
        + len(batch.mse_indexes) * llm.hidden_size * config.latent_dim
        + patches * vit.patch_dim * vit.hidden_size
        + patches * llm.hidden_size * (vit.hidden_size + llm.hidden_size)
    )
    return decoder + encoder + 2 * ends
