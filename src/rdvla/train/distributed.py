"""Several processes that take each step together, started by torchrun."""

import os
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import nn


class Ranks:
    """The processes of a run. A context manager; alone, everything is a no-op.

    Attributes:
        index: this process, from 0.
        count: number of processes.
    """

    def __init__(self) -> None:
        """Read torchrun's environment."""
        self.index = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.index == 0

    def __enter__(self) -> Self:
        """Meet the other processes."""
        if self.count > 1:
            dist.init_process_group("gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Part from them."""
        if self.count > 1:
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()

    def total(self, value: float) -> float:
        """Return the sum of `value` over the processes."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor)
        return float(tensor)

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its sum over the processes."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
