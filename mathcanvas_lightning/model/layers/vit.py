"""SigLIP on packed patches: full attention within an image, no attention across images."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mathcanvas_lightning.model.config import ViTConfig
from mathcanvas_lightning.model.layers.attention import Attention


class ViTAttention(nn.Module):
    """Multi-head attention with biases."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        size = config.hidden_size
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        """[V, d] to [V, d]."""
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        qkv = (projection(x).unflatten(-1, heads) for projection in projections)
        out: Tensor = self.out_proj(attention(*qkv).flatten(1))
        return out


class ViTMLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[V, d] to [V, d]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class ViTLayer(nn.Module):
    """Norm, attention, norm, MLP."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = ViTAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        """[V, d] to [V, d]."""
        x = x + self.self_attn(self.layer_norm1(x), attention)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class ViTEmbeddings(nn.Module):
    """Embeds flattened patches and adds learned position embeddings."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.patch_dim, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, patches: Tensor, position_ids: Tensor) -> Tensor:
        """[V, P] and [V] to [V, d]."""
        patches = patches.to(self.patch_embedding.weight.dtype)
        embedded: Tensor = self.patch_embedding(patches) + self.position_embedding(position_ids)
        return embedded


class ViTEncoder(nn.Module):
    """The encoder layers, without the last one, which BAGEL does not use."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_layers_used))


class VisionTransformer(nn.Module):
    """Embeddings, layers, final norm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = ViTEmbeddings(config)
        self.encoder = ViTEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, patches: Tensor, position_ids: Tensor, attention: Attention) -> Tensor:
        """Encodes packed patches.

        Args:
            patches: [V, P].
            position_ids: [V] int64.
            attention: Attention with one full split per image.

        Returns:
            [V, d].
        """
        x = self.embeddings(patches, position_ids)
        for layer in self.encoder.layers:
            x = layer(x, attention)
        out: Tensor = self.post_layernorm(x)
        return out


class ViTModel(nn.Module):
    """The encoder, nested as in the published parameter names."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config)
