"""What the machine could do at best, and what a computation asks of it."""

import os
import platform
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from rdvla.model.freeze import int8_products

_LOOKUPS = (torch.ops.aten.embedding.default,)


@dataclass(frozen=True)
class Machine:
    """Measured limits, in float32 and with torch's present number of threads.

    Attributes:
        bytes_per_second: reading a large array.
        flops_per_second: multiplying large matrices.
    """

    bytes_per_second: float
    flops_per_second: float

    @classmethod
    def measure(
        cls,
        clock: Callable[[], float] = time.perf_counter,
        *,
        device: str = "cpu",
        megabytes: int = 256,
        side: int = 1536,
        repeats: int = 5,
    ) -> "Machine":
        """Return the best of several reads of `megabytes` and products of `side` x `side` matrices by `clock`."""
        columns = 4096
        array = torch.ones(max(megabytes * 2**20 // 4 // columns, 1), columns, device=device)
        vector = torch.ones(columns, device=device)
        left, right = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
        reads = (lambda: array.sum(), lambda: array @ vector)
        read = min(seconds(call, clock) for call in reads for _ in range(repeats))
        multiply = min(seconds(lambda: left @ right, clock) for _ in range(repeats))
        return cls(array.nbytes / read, 2 * side**3 / multiply)

    def best(self, other: "Machine") -> "Machine":
        """Return the higher of each limit: another load can hide a limit, nothing can exceed it."""
        return Machine(
            max(self.bytes_per_second, other.bytes_per_second), max(self.flops_per_second, other.flops_per_second)
        )


@dataclass(frozen=True)
class Work:
    """What one phase of a computation cannot do without, `count` times over.

    Attributes:
        weights: numbers read at least once each time.
        flops: multiplications and additions of matrix products, convolutions and attention.
        count: how often the phase runs, one after the other.
    """

    weights: int
    flops: int
    count: int = 1

    @classmethod
    def of(cls, call: Callable[[], object], *, count: int = 1) -> "Work":
        """Run `call` once, and record the parameters it reads (tables that it looks rows up in aside) and its flops."""
        flops = FlopCounterMode(display=False, custom_mapping=_MORE_FLOPS)
        with _Parameters() as parameters, flops:
            call()
        return cls(parameters.numbers, flops.get_total_flops(), count)

    def seconds(self, machine: Machine) -> float:
        """Return the least time on `machine`: every time, the slower of reading and computing."""
        return self.count * max(4 * self.weights / machine.bytes_per_second, self.flops / machine.flops_per_second)


def floor(phases: Sequence[Work], machine: Machine) -> float:
    """Return the least seconds that the `phases` take one after the other in float32."""
    return sum(phase.seconds(machine) for phase in phases)


def describe(device: str) -> dict[str, Any]:
    """Return what the numbers of `device` depend on, without naming the machine."""
    return {
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "int8_products": int8_products(),
    }


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are allocated inside it and still alive; `peak` is the most at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count the storages that it made."""
        known = {_key(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if _key(tensor) not in known and _key(tensor) not in self._alive:
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._alive[_key(tensor)] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._drop, _key(tensor))

    def _drop(self, key: int) -> None:
        self._now -= self._alive.pop(key)


class _Parameters(TorchDispatchMode):
    """Counts the numbers of all parameters that are read inside it, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}

    @property
    def numbers(self) -> int:
        return sum(self._sizes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _LOOKUPS:
            for tensor in _tensors((args, kwargs)):
                if isinstance(tensor, nn.Parameter):
                    self._sizes[_key(tensor)] = tensor.numel()
        return func(*args, **(kwargs or {}))


def _attention_flops(queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
    """Count what torch's counter leaves out on a CPU, from shapes."""
    return int(sdpa_flop_count(queries, keys, values))


_MORE_FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among `values` that have a storage of their own kind (packed weights have none)."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return how long a call takes by `clock`."""
    start = clock()
    call()
    return clock() - start
