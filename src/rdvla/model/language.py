"""The causal language model: a Qwen2 of transformers, computed only as far as somebody reads it.

Shape suffixes: B batch, T positions, D width.
"""

from collections.abc import Collection
from typing import Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from rdvla.config import Config
from rdvla.errors import ConfigError


class LanguageConfig(Config):
    """A Qwen2 causal language model (transformers' names)."""

    vocab_size: PositiveInt = 151936
    hidden_size: PositiveInt = 896
    num_layers: PositiveInt = 24
    num_heads: PositiveInt = 14
    num_kv_heads: PositiveInt = 2
    mlp_width: PositiveInt = 4864
    rope_theta: PositiveFloat = 1e6
    rms_norm_eps: PositiveFloat = 1e-6

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ConfigError(
                f"language.hidden_size ({self.hidden_size}) must be an even multiple of num_heads ({self.num_heads})."
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"language.num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})."
            )
        return self


class LanguageModel(nn.Module):
    """Qwen2 without logits. Layers above the highest one that is read are kept in checkpoints but not computed."""

    def __init__(self, config: LanguageConfig) -> None:
        """Build the model with random weights."""
        from transformers import Qwen2Config, Qwen2Model

        super().__init__()
        self.config = config
        self.model = Qwen2Model(
            Qwen2Config(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                intermediate_size=config.mlp_width,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                use_sliding_window=False,
                use_cache=False,
            )
        )
        # Its tables would be rounded by `.to(bfloat16)`; `rope_tables` computes them afresh in float32.
        del self.model.rotary_emb

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return token embeddings `[B, T, D]`."""
        return self.model.embed_tokens(ids_BT)

    def forward(self, embeddings_BTD: Tensor, wanted: Collection[int]) -> dict[int, Tensor]:
        """Return the hidden states `[B, T, D]` with the indices `wanted`.

        Index 0 is the input, k the output of layer k, the last one after the final norm. Attention is causal and
        samples are padded on the right, so that padding changes nothing before it and no mask is needed.
        """
        rope = self.rope_tables(embeddings_BTD)
        x_BTD = embeddings_BTD
        states = {0: x_BTD}
        for index, layer in enumerate(self.model.layers[: max(wanted)], start=1):
            x_BTD = layer(x_BTD, position_embeddings=rope)
            states[index] = self.model.norm(x_BTD) if index == self.config.num_layers else x_BTD
        return {index: states[index] for index in wanted}

    def rope_tables(self, embeddings_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `[1, T, E]` for positions 0..T-1: float32 angles, then the dtype of the input."""
        head_dim = self.config.hidden_size // self.config.num_heads
        device = embeddings_BTD.device
        exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
        positions = torch.arange(embeddings_BTD.shape[1], device=device).float()
        angles_1TE = torch.outer(positions, 1.0 / self.config.rope_theta**exponents).repeat(1, 2).unsqueeze(0)
        return angles_1TE.cos().to(embeddings_BTD.dtype), angles_1TE.sin().to(embeddings_BTD.dtype)
