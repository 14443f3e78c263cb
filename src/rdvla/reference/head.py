"""The released computation, written straight from its description: nothing cached, nothing fused, nothing left out.

Slow and plain on purpose: the other side of every comparison, in exactness and in time. The head shares no code with
`rdvla.model`, so that agreement means something.

Shape suffixes: B batch, K action tokens, P task and vision tokens, Q latent tokens, D width, A action size.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdvla.stops import StopRule


@dataclass(frozen=True)
class Hidden:
    """What the language model hands to the head, by hidden-state index.

    Attributes:
        tasks: task and vision tokens `[B, P, D]`.
        latents: latent tokens `[B, Q, D]`.
        state: the projected robot state `[B, 1, D]`, appended to the latent tokens whenever they are read.
    """

    tasks: Mapping[int, Tensor]
    latents: Mapping[int, Tensor]
    state: Tensor


@dataclass(frozen=True)
class PublishedHead:
    """The action head.

    Attributes:
        weights: the tensors of the released action head's file (`model.prelude.0.q_self.weight`, ...). A block without
            `q_cross` attends to nothing.
        config: the content of the released `action_head_config--*.json`.
    """

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]

    def prelude(self, hidden: Hidden) -> Tensor:
        """Return the embedding `[B, K, D]` that every iteration is reminded of."""
        queries = self.weights["model.action_queries"].unsqueeze(0).repeat(len(hidden.state), 1, 1)
        return self._blocks("prelude", queries, hidden)

    def step(self, scratchpad_BKD: Tensor, injected_BKD: Tensor, hidden: Hidden) -> Tensor:
        """Return the scratchpad `[B, K, D]` after one more iteration."""
        x = self._linear("model.adapter", torch.cat([scratchpad_BKD, injected_BKD], dim=-1))
        x = self._norm("model.adapter_norm", self.weights["model.gamma_adapt"] * x)
        return self._norm("model.recurrent_norm", self._blocks("recurrent", x, hidden))

    def decode(self, scratchpad_BKD: Tensor, hidden: Hidden) -> Tensor:
        """Return normalised actions `[B, K, A]`."""
        x = self._norm("model.output_norm", self._blocks("coda", scratchpad_BKD, hidden))
        return F.linear(x, self.weights["model.output_proj.weight"], self.weights["model.output_proj.bias"])

    @torch.no_grad()
    def decide(self, hidden: Hidden, scratchpad_BKD: Tensor, rule: StopRule) -> Tensor:
        """Return normalised actions `[B, K, A]`.

        Any rule but `fixed` is the released one: after every iteration the Coda looks, and all samples stop together
        when the mean squared difference of two consecutive looks is below the threshold.
        """
        injected = self.prelude(hidden)
        previous: Tensor | None = None
        for _ in range(rule.max_depth):
            scratchpad_BKD = self.step(scratchpad_BKD, injected, hidden)
            if rule.name != "fixed":
                look = self.decode(scratchpad_BKD, hidden)
                if previous is not None and float((look - previous).square().mean()) < (rule.threshold or 0.0):
                    break
                previous = look
        return self.decode(scratchpad_BKD, hidden)

    def train_forward(self, hidden: Hidden, scratchpad_BKD: Tensor, *, n_no_grad: int, n_grad: int) -> Tensor:
        """Return normalised actions `[B, K, A]` of truncated backpropagation: gradient through the last iterations."""
        injected = self.prelude(hidden)
        for number in range(n_no_grad + n_grad):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= n_no_grad):
                scratchpad_BKD = self.step(scratchpad_BKD, injected, hidden)
        return self.decode(scratchpad_BKD, hidden)

    def _blocks(self, group: str, x_BKD: Tensor, hidden: Hidden) -> Tensor:
        for index, layer in enumerate(self.config[f"{group}_vlm_layers"]):
            latents = torch.cat([hidden.latents[layer], hidden.state], dim=1)
            x_BKD = self._block(f"model.{group}.{index}.", x_BKD, latents, hidden.tasks[layer])
        return x_BKD

    def _block(self, start: str, x_BKD: Tensor, latents: Tensor, tasks: Tensor) -> Tensor:
        x_BKD = x_BKD + self._attend_to_itself(start, self._norm(f"{start}norm1", x_BKD))
        if f"{start}q_cross.weight" in self.weights:
            x_BKD = x_BKD + self._attend_to_conditioning(start, self._norm(f"{start}norm2", x_BKD), latents, tasks)
        n = self._norm(f"{start}norm3", x_BKD)
        gated = F.silu(self._linear(f"{start}ffn_gate", n)) * self._linear(f"{start}ffn_up", n)
        return x_BKD + self._linear(f"{start}ffn_down", gated)

    def _attend_to_itself(self, start: str, n: Tensor) -> Tensor:
        base = self.config.get("rope_base", 1e4)
        q, k, v = (self._heads(self._linear(f"{start}{name}_self", n)) for name in "qkv")
        mass = torch.softmax(rope(q, base) @ rope(k, base).transpose(-1, -2) * self._scale, dim=-1)
        return self._linear(f"{start}o_self", (mass @ v).transpose(1, 2).reshape(n.shape))

    def _attend_to_conditioning(self, start: str, n: Tensor, latents: Tensor, tasks: Tensor) -> Tensor:
        """Project the conditioning, gate the logits (not the values) of its task tokens, take one softmax."""

        def project(name: str, tokens: Tensor) -> Tensor:
            return self._heads(self._linear(f"{start}{name}", tokens))

        q = project("q_cross", n)
        to_latents = q @ project("k_latents", latents).transpose(-1, -2)
        to_tasks = q @ project("k_vision", tasks).transpose(-1, -2) * torch.tanh(self.weights[f"{start}gate"])
        mass = torch.softmax(torch.cat([to_latents, to_tasks], dim=-1) * self._scale, dim=-1)
        values = torch.cat([project("v_latents", latents), project("v_vision", tasks)], dim=2)
        return self._linear(f"{start}o_cross", (mass @ values).transpose(1, 2).reshape(n.shape))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        eps = self.config.get("rms_norm_eps", 1e-6)
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * self.weights[f"{name}.weight"]

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.config["num_heads"], -1).transpose(1, 2)

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.config["hidden_dim"] // self.config["num_heads"])


@functools.cache
def angles(positions: int, width: int, base: float, device: torch.device) -> Tensor:
    """Return one angle per position and number: laid out for halves, number k has the frequency of k mod width/2."""
    rows = [[p / base ** (2 * (k % (width // 2)) / width) for k in range(width)] for p in range(positions)]
    return torch.tensor(rows, device=device)


def rope(x: Tensor, base: float) -> Tensor:
    """Encode positions: the angles are laid out for halves, yet neighbours are turned."""
    angle = angles(x.shape[-2], x.shape[-1], base, x.device)
    turned = torch.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return x * torch.cos(angle) + turned * torch.sin(angle)


def project_state(weights: Mapping[str, Tensor], state_BS: Tensor) -> Tensor:
    """Return the state token `[B, 1, D]` of normalised states; `weights` are the released state projector's."""
    inner = F.gelu(F.linear(state_BS, weights["fc1.weight"], weights["fc1.bias"]))
    return F.linear(inner, weights["fc2.weight"], weights["fc2.bias"]).unsqueeze(1)
