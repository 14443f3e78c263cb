"""The recurrent action head: Prelude, Recurrent Core, Coda.

The conditioning (latent tokens, state token, task and vision tokens) never changes during a decision. Its keys and
values are projected once (`RecurrentHead.condition`); an iteration touches only the K action tokens.

Shape suffixes: B batch, K action tokens (chunk size), D width, H heads, E head width, N conditioning tokens
(P task and vision tokens, Q latent tokens plus one state token), A action size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdvla.model.config import HeadConfig


@dataclass(frozen=True)
class Context:
    """What one block attends to, taken from one layer of the language model.

    Attributes:
        latents: `[B, Q + 1, D]` latent tokens with the state token appended.
        vision: `[B, P, D]` task and vision tokens.
    """

    latents: Tensor
    vision: Tensor


@dataclass(frozen=True)
class KeysValues:
    """A block's projected conditioning, keys and values `[B, H, N, E]`."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Tensor) -> "KeysValues":
        """Keep the samples `rows` (int64 indices)."""
        return KeysValues(self.keys[rows], self.values[rows])

    def twice(self) -> "KeysValues":
        """Return all samples, then all of them again; a single one is not copied."""
        keys, values = (each.expand(2, *each.shape).flatten(0, 1) for each in (self.keys, self.values))
        return KeysValues(keys, values)


Projected = tuple[KeysValues | None, ...]
"""Keys and values of each block, None where it does not attend (spelt out in a compiled function, torch 2.9 fails)."""


@dataclass(frozen=True)
class Conditioning:
    """Everything that stays fixed while the core iterates.

    Attributes:
        injected: `[B, K, D]` the Prelude's output, injected into every iteration.
        core, coda: keys and values of each block.
        rope: cosines and sines `[K, E]`.
    """

    injected: Tensor
    core: Projected
    coda: Projected
    rope: tuple[Tensor, Tensor]

    def select(self, rows: Tensor) -> "Conditioning":
        """Keep the samples `rows` (int64 indices)."""
        return Conditioning(
            self.injected[rows],
            tuple(block.select(rows) if block else None for block in self.core),
            tuple(block.select(rows) if block else None for block in self.coda),
            self.rope,
        )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in float32 including the product with the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        """Normalise the last axis of size `dim`."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x` in its own dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rope_tables(config: HeadConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the published angles' cosines and sines `[K, E]`, the frequencies repeated twice side by side.

    Frequencies, positions and angles have the dtype (and device) of `like`: in bfloat16 the released code rounds every
    one of them.
    """
    head_dim = config.hidden_dim // config.num_heads
    exponents = torch.arange(0, head_dim, 2, device=like.device).float() / head_dim
    frequencies = (1.0 / config.rope_base**exponents).to(like.dtype)
    positions = torch.arange(config.chunk_size, device=like.device, dtype=like.dtype)
    angles = torch.outer(positions, frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def apply_rope(x_BHKE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Encode positions as the released weights expect.

    The angles are laid out for halves `(x[:E/2], x[E/2:])`, yet neighbours `(x[0], x[1])` are turned. So this is no
    rotation; it is what the published weights were trained with.
    """
    cos, sin = rope
    turned = torch.stack((-x_BHKE[..., 1::2], x_BHKE[..., ::2]), dim=-1).flatten(-2)
    return x_BHKE * cos + turned * sin


class Block(nn.Module):
    """Self-attention among the action tokens, gated cross-attention to the conditioning, feed-forward; all pre-norm."""

    def __init__(self, config: HeadConfig, *, cross_attention: bool = True) -> None:
        """Build one block; without `cross_attention` the middle part does not exist."""
        super().__init__()
        dim, self.num_heads = config.hidden_dim, config.num_heads

        def linear(out_dim: int = dim, in_dim: int = dim) -> nn.Linear:
            return nn.Linear(in_dim, out_dim, bias=False)

        self.norm1 = RMSNorm(dim, config.rms_norm_eps)
        self.q_self, self.k_self, self.v_self, self.o_self = linear(), linear(), linear(), linear()
        self.cross_attention = cross_attention
        if cross_attention:
            self.norm2 = RMSNorm(dim, config.rms_norm_eps)
            self.q_cross, self.o_cross = linear(), linear()
            self.k_latents, self.v_latents = linear(), linear()
            self.k_vision, self.v_vision = linear(), linear()
            self.gate = nn.Parameter(torch.zeros(1))
        self.norm3 = RMSNorm(dim, config.rms_norm_eps)
        self.ffn_gate, self.ffn_up, self.ffn_down = linear(4 * dim), linear(4 * dim), linear(dim, 4 * dim)

    def heads(self, x_BND: Tensor) -> Tensor:
        """Split `[B, N, D]` into heads `[B, H, N, E]`."""
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def condition(self, context: Context) -> KeysValues | None:
        """Project the conditioning to keys and values `[B, H, Q + 1 + P, E]`.

        Scaling the vision logits by tanh(gate) is scaling the vision keys by it.
        """
        if not self.cross_attention:
            return None
        vision_keys = torch.tanh(self.gate) * self.k_vision(context.vision)
        keys = torch.cat((self.k_latents(context.latents), vision_keys), dim=1)
        values = torch.cat((self.v_latents(context.latents), self.v_vision(context.vision)), dim=1)
        return KeysValues(self.heads(keys), self.heads(values))

    def forward(self, x_BKD: Tensor, conditioning: KeysValues | None, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the refined action tokens `[B, K, D]`."""
        n_BKD = self.norm1(x_BKD)
        q, k, v = (self.heads(project(n_BKD)) for project in (self.q_self, self.k_self, self.v_self))
        x_BKD = x_BKD + self.o_self(_attend(apply_rope(q, rope), apply_rope(k, rope), v))
        if conditioning is not None:
            q = self.heads(self.q_cross(self.norm2(x_BKD)))
            x_BKD = x_BKD + self.o_cross(_attend(q, conditioning.keys, conditioning.values))
        n_BKD = self.norm3(x_BKD)
        return x_BKD + self.ffn_down(F.silu(self.ffn_gate(n_BKD)) * self.ffn_up(n_BKD))


def _attend(q_BHKE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q_BHKE, k_BHNE, v_BHNE).transpose(1, 2).flatten(-2)


class Prelude(nn.Module):
    """Turns the learned action queries into the embedding that every iteration is reminded of."""

    def __init__(self, config: HeadConfig) -> None:
        """Build the action queries and the blocks (there may be none)."""
        super().__init__()
        self.action_queries = nn.Parameter(torch.empty(config.chunk_size, config.hidden_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in config.prelude_layers)

    def forward(
        self, conditioning: Sequence[KeysValues | None], rope: tuple[Tensor, Tensor], batch_size: int
    ) -> Tensor:
        """Return the injected embedding `[B, K, D]`."""
        x_BKD = self.action_queries.expand(batch_size, -1, -1)
        for block, keys_values in zip(self.blocks, conditioning, strict=True):
            x_BKD = block(x_BKD, keys_values, rope)
        return x_BKD


class RecurrentCore(nn.Module):
    """The weight-tied step that refines the scratchpad."""

    def __init__(self, config: HeadConfig) -> None:
        """Build the adapter that injects the Prelude's output, the blocks and the norms."""
        super().__init__()
        self.adapter = nn.Linear(2 * config.hidden_dim, config.hidden_dim, bias=False)
        self.gamma_adapt = nn.Parameter(torch.ones(1))
        self.adapter_norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in config.recurrent_layers)
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)

    def forward(self, latents_BKD: Tensor, conditioning: Conditioning) -> Tensor:
        """Apply one iteration: `[B, K, D]` to `[B, K, D]`."""
        x_BKD = self.adapter(torch.cat((latents_BKD, conditioning.injected), dim=-1))
        x_BKD = self.adapter_norm(self.gamma_adapt * x_BKD)
        for block, keys_values in zip(self.blocks, conditioning.core, strict=True):
            x_BKD = block(x_BKD, keys_values, conditioning.rope)
        return self.norm(x_BKD)


class Coda(nn.Module):
    """Decodes the scratchpad into actions."""

    def __init__(self, config: HeadConfig) -> None:
        """Build the blocks (there may be none), the output norm and projection."""
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config, cross_attention=config.coda_cross_attention) for _ in config.coda_layers
        )
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.output_proj = nn.Linear(config.hidden_dim, config.action_dim)

    def forward(self, latents_BKD: Tensor, conditioning: Conditioning) -> Tensor:
        """Return normalised actions `[B, K, A]`, unbounded."""
        for block, keys_values in zip(self.blocks, conditioning.coda, strict=True):
            latents_BKD = block(latents_BKD, keys_values, conditioning.rope)
        return self.output_proj(self.norm(latents_BKD))


class RecurrentHead(nn.Module):
    """Conditioning in, actions out, any number of iterations in between.

    `condition` once, `init_latents` once, `core` r times, `coda` once (or whenever a stopping rule wants to look).
    """

    def __init__(self, config: HeadConfig) -> None:
        """Build the head with the published initialisation (drawn from torch's global generator)."""
        super().__init__()
        self.config = config
        self.prelude = Prelude(config)
        self.core = RecurrentCore(config)
        self.coda = Coda(config)
        self.gamma_init = nn.Parameter(torch.ones(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: truncated normals at 3 deviations.

        Deviation sqrt(2 / (5 D)); for `ffn_down` and `output_proj` divided by sqrt(mean_recurrence x core blocks).
        """
        config = self.config
        std = (2 / (5 * config.hidden_dim)) ** 0.5
        output_std = std / (config.mean_recurrence * len(config.recurrent_layers)) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                _initialise(module.weight, output_std if name.endswith(("ffn_down", "output_proj")) else std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        _initialise(self.prelude.action_queries, config.init_std)

    def condition(self, contexts: Mapping[int, Context]) -> Conditioning:
        """Project the conditioning once per decision and run the Prelude.

        Args:
            contexts: what the blocks attend to, by hidden-state index; every index of
                `config.conditioning_layers` is present.
        """
        config = self.config
        rope = rope_tables(config, self.prelude.action_queries)

        def project(blocks: nn.ModuleList, layers: Sequence[int]) -> Projected:
            pairs = zip(cast("Iterable[Block]", blocks), layers, strict=True)
            return tuple(block.condition(contexts[layer]) for block, layer in pairs)

        batch_size = contexts[config.recurrent_layers[0]].latents.shape[0]
        injected = self.prelude(project(self.prelude.blocks, config.prelude_layers), rope, batch_size)
        core = project(self.core.blocks, config.recurrent_layers)
        coda = project(self.coda.blocks, config.coda_layers)
        return Conditioning(injected, core, coda, rope)

    def both(self, before_BKD: Tensor, after_BKD: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Decode two scratchpads of every sample in one call of the Coda; both `[B, K, A]`."""
        coda = tuple(block.twice() if block else None for block in conditioning.coda)
        actions: Tensor = self.coda(torch.cat((before_BKD, after_BKD)), replace(conditioning, coda=coda))
        before_BKA, after_BKA = actions.chunk(2)
        return before_BKA, after_BKA

    def init_latents(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the initial scratchpad `[B, K, D]`: truncated normal, deviation gamma_init x init_std, cut at 3.

        A given `generator` draws on its own device, so a CPU generator gives the same scratchpad everywhere.
        """
        like = self.prelude.action_queries
        std = self.gamma_init.item() * self.config.init_std
        shape = (batch_size, self.config.chunk_size, self.config.hidden_dim)
        device = like.device if generator is None else generator.device
        return truncated_normal(shape, std, generator=generator, device=device).to(like)

    def forward(self, contexts: Mapping[int, Context], latents_BKD: Tensor, *, n_no_grad: int, n_grad: int) -> Tensor:
        """Return normalised actions `[B, K, A]` after `n_no_grad + n_grad` iterations, gradient through the last.

        This is truncated backpropagation through time: the projected conditioning carries gradient, the first
        `n_no_grad` iterations reuse it without.
        """
        conditioning = self.condition(contexts)
        with torch.no_grad():
            for _ in range(n_no_grad):
                latents_BKD = self.core(latents_BKD, conditioning)
        for _ in range(n_grad):
            latents_BKD = self.core(latents_BKD, conditioning)
        actions: Tensor = self.coda(latents_BKD, conditioning)
        return actions


def truncated_normal(
    shape: Sequence[int], std: float, *, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Draw a float32 normal of deviation `std`; what lies beyond 3 deviations is drawn again.

    Our own, because what torch's `trunc_normal_` gives a seed depends on its release and on the dtype. As there since
    2.13, all numbers are drawn again, and those beyond are replaced.
    """

    def draw() -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device).normal_(0, std, generator=generator)

    drawn = draw()
    while (beyond := drawn.abs() > 3 * std).any():
        drawn = torch.where(beyond, draw(), drawn)
    return drawn


def _initialise(weight: Tensor, std: float) -> None:
    if not weight.is_meta:
        with torch.no_grad():
            weight.copy_(truncated_normal(weight.shape, std, device=weight.device))
