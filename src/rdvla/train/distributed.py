"""Several processes that take each step together, started by torchrun or `accelerate launch`.

A step is the sum over everything that the processes compute, so n of them take the steps of one with n times the
batch, whatever each finds padded. A process that ends leaves word, so that the others can say why they stop.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # public, but not in its __all__
from torch.distributed.rendezvous import rendezvous

from rdvla.errors import TrainingError
from rdvla.train.sharding import is_sharded

_FAILURE, _GONE = "failure", "gone"
_PATIENCE = timedelta(days=7)  # while the first process decodes images, validates, saves or plays episodes
_LAST_WORDS_S = 2.0


class PeerError(TrainingError):
    """Another process of the run has failed."""


class Ranks:
    """The processes of a run. A context manager; alone, everything is a no-op.

    Attributes:
        index: this process, from 0.
        count: number of processes.
        local_index: this process on its machine, from 0.
    """

    def __init__(self) -> None:
        """Read the launcher's environment."""
        self.index = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_index = int(os.environ.get("LOCAL_RANK", "0"))
        self._device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.index == 0

    def on(self, device: torch.device, *, hang_timeout_s: float = 1800.0) -> Self:
        """Say where gradients live and how long one process may let the others wait for them."""
        self._device, self._timeout = device, timedelta(seconds=hang_timeout_s)
        return self

    def __enter__(self) -> Self:
        """Meet the other processes.

        Raises:
            TrainingError: they do not come.
        """
        if self.count > 1:
            backend = "gloo"
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
                backend = "cpu:gloo,cuda:nccl"
            try:
                store, _, _ = next(iter(rendezvous("env://", timeout=self._timeout)))
                self._store = PrefixStore("rdvla", store)
                dist.init_process_group(
                    backend, store=self._store, rank=self.index, world_size=self.count, timeout=self._timeout
                )
                self._patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
            except (RuntimeError, ValueError) as error:
                raise TrainingError(f"process {self.index} of {self.count} cannot meet the others: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Part from them; after an error, leave word."""
        if self.count == 1:
            return
        if error is not None and not isinstance(error, PeerError):
            with suppress(RuntimeError):  # the store may be gone with the process that kept it
                self._store.set(_FAILURE, f"process {self.index}: {error or type(error).__name__}")
        dist.destroy_process_group()
        del self._patient  # the last hold on its connections: only now do waiting processes notice
        if error is not None:
            self._let_the_others_read()

    def _let_the_others_read(self) -> None:
        """Keep the store for a moment: without torchrun's agent, it ends with the first process."""
        with suppress(RuntimeError):
            if self.is_first:
                gone = [f"{_GONE}{index}" for index in range(1, self.count)]
                self._store.wait(gone, timedelta(seconds=2 * _LAST_WORDS_S))
            else:
                self._store.set(f"{_GONE}{self.index}", "")

    def wait(self) -> None:
        """Wait until every process is here, however long it takes.

        Raises:
            PeerError: one of them has ended.
        """
        if self.count > 1:
            with self.together():
                dist.barrier(group=self._patient)

    def total(self, value: float) -> float:
        """Return the sum of `value` over the processes.

        Raises:
            PeerError: one of them has ended, or hangs.
        """
        if self.count == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        with self.together():
            dist.all_reduce(tensor)
        return float(tensor)

    def from_first(self, value: int) -> int:
        """Return the first process's `value`, however long it takes to come by.

        Raises:
            PeerError: a process has ended.
        """
        if self.count == 1:
            return value
        tensor = torch.tensor(value)
        with self.together():
            dist.broadcast(tensor, src=0, group=self._patient)
        return int(tensor)

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its sum over the processes; a sharded model's are sums already.

        Raises:
            PeerError: one of them has ended, or hangs.
        """
        if self.count == 1 or is_sharded(model):
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with self.together():
            dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Enclose what all processes compute together.

        Raises:
            PeerError: instead of the RuntimeError that torch raises when one of them has ended, or hangs.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PeerError(f"process {self.index} stops: {self._why()} ({str(error).splitlines()[0]})") from error

    def _why(self) -> str:
        try:
            self._store.wait([_FAILURE], timedelta(seconds=_LAST_WORDS_S))
            return self._store.get(_FAILURE).decode()
        except RuntimeError:  # no entry, or the store is gone with the process that kept it
            return "another process has ended without a word, or hangs."
