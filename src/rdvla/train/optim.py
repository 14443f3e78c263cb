"""The optimiser and its schedule."""

import math

import torch
from torch import nn

from rdvla.train.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW; only matrices and kernels decay, not norms, gates, biases, embeddings or learned tokens."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tokens = ("latent_tokens", "action_queries", "pos_embed")
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and not name.endswith(tokens)
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Return the rate of the `step`-th optimiser step (from 0): linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    floor = config.final_fraction
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
