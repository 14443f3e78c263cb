"""In which arithmetic a network is trained, and on which device."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rdvla.errors import ConfigError
from rdvla.model.rdvla import RDVLA
from rdvla.train.config import TrainPrecision


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """Return the device of a process; `auto` is this process's GPU where there is one.

    Raises:
        ConfigError: torch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used here: {error}") from None
    return device


def cast(model: nn.Module, precision: TrainPrecision) -> None:
    """Give every weight the dtype in which it is kept: frozen weights need no more digits than the arithmetic has."""
    for parameter in model.parameters():
        full = precision == "float32" or (precision == "mixed" and parameter.requires_grad)
        parameter.data = parameter.data.to(torch.float32 if full else torch.bfloat16)


def arithmetic(precision: TrainPrecision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the network is computed."""
    if precision == "mixed":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def saved_dtype(precision: TrainPrecision) -> torch.dtype:
    """Return the dtype in which policies are saved."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def checkpoint_activations(model: RDVLA) -> None:
    """Keep no activations inside the backbone's blocks; the backward pass computes them again."""
    for block in model.backbone.blocks():
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputing(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputing
