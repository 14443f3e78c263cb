"""The optimiser and its schedule."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rdvla.train.config import OptimizerConfig
from rdvla.train.sharding import gathered, spread


class Optimizers:
    """Several optimisers over disjoint parameters that act as one."""

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        """Act for `members`, in this order; their rates now are the peak rates."""
        self.members = members
        self._peaks = [group["lr"] for group in self.param_groups]

    def set_rates(self, factor: float) -> None:
        """Multiply every peak rate."""
        for group, peak in zip(self.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take one step."""
        for member in self.members:
            member.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what `load_state_dict` needs to continue; where parameters are sharded, a call for all processes."""
        return [gathered(member.state_dict()) for member in self.members]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from `state_dict`'s result."""
        for member, saved in zip(self.members, states, strict=True):
            parameters = [parameter for group in member.param_groups for parameter in group["params"]]
            state = {
                index: {name: spread(value, parameters[index]) for name, value in entries.items()}
                for index, entries in saved["state"].items()
            }
            member.load_state_dict(saved | {"state": state})


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """Build AdamW, with Muon for the hidden matrices if asked.

    Muon (Jordan et al., 2024) takes the weights of linear layers but adapters and the one that outputs actions, its
    step scaled to the size of AdamW's so that one learning rate serves both (Liu et al., Muon is Scalable, 2025).
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tokens = ("latent_tokens", "action_queries", "pos_embed")
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and not name.endswith(tokens)
        if config.muon and is_matrix and parameter.ndim == 2 and ".lora_" not in name and "output_proj." not in name:
            hidden.append(parameter)
        elif is_matrix or config.decayed == "all":
            decayed.append(parameter)
        else:
            plain.append(parameter)
    rate, decay = config.learning_rate, config.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)
    if not hidden:
        return Optimizers(adamw)
    muon = torch.optim.Muon(
        hidden,
        lr=config.muon_learning_rate or rate,
        weight_decay=decay if config.muon_weight_decay is None else config.muon_weight_decay,
        momentum=config.muon_momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return Optimizers(muon, adamw)


def rate_factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Return what multiplies the peak rates at the `step`-th optimiser step (from 0): warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.warmup_start + (1 - config.warmup_start) * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    floor = config.final_fraction
    if config.decay_at is not None:
        return 1.0 if step < config.decay_at else floor
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
