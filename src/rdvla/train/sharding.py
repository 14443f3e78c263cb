"""Weights, gradients and optimiser state spread over the processes (FSDP2), for networks too large for each of them.

Every block of the backbone is a unit: brought together while it computes, apart again afterwards. What is in
no unit (embeddings, projectors, the head, which a step runs many times) stays together from a step's forward pass to
the end of its backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rdvla.model.rdvla import RDVLA


def shard(model: RDVLA, device: torch.device) -> None:
    """Spread the weights of `model` over all processes and `device`s, in place.

    From then on a backward pass leaves each process its part of the gradient, summed over the processes.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    drawn_from = model.head.gamma_init  # read between steps, and never trained
    for module in (*model.backbone.blocks(), model):
        part = fully_shard(module, mesh=mesh, ignored_params={drawn_from})
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(enable=True)


def is_sharded(model: nn.Module) -> bool:
    """Say whether `shard` has been here."""
    return isinstance(model, FSDPModule)


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """Bring together what is in no unit, so that parts of the network can be computed outside `forward`."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def gathered(value: Any) -> Any:
    """Return a tensor, or nested dicts and lists of them, as one process would hold them.

    What is spread is brought to the CPU whole; all processes must ask for it. The rest is returned as it is.
    """
    if isinstance(value, dict):
        return {key: gathered(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [gathered(entry) for entry in value]
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def spread(value: Any, like: Tensor) -> Any:
    """Return a whole tensor spread as `like` is; anything of another shape, or where `like` is whole, as it is."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
