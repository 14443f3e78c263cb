"""Execution horizons: how many actions of a chunk to execute before deciding again.

Formulas and numbers: the RD-VLA paper (arXiv 2602.07845) and its released evaluation code. To the paper, many
iterations mean an uncertain policy and so a short horizon; the released binary and dynamic rules point the other way.
Both directions are here under names that say which; without a suffix, `binary` and `dynamic` are the paper's.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Protocol

from rdvla.errors import ConfigError, suggest


class Horizon(Protocol):
    """Maps the iterations a decision took to a number of actions to execute."""

    def steps(self, num_recurrences: int, chunk_size: int) -> int:
        """Return how many actions of the chunk to execute, in 1..`chunk_size`."""
        ...


class Fixed:
    """Always execute `n` actions."""

    def __init__(self, n: int) -> None:
        """Execute `n` >= 1 actions per decision."""
        if n < 1:
            raise ConfigError(f"the fixed horizon must execute at least 1 action, found {n}.")
        self.n = n

    def steps(self, num_recurrences: int, chunk_size: int) -> int:
        """Return `n`, at most the chunk."""
        return min(self.n, chunk_size)


class Binary:
    """One horizon up to `threshold` iterations, another above it."""

    def __init__(self, *, confident: int, uncertain: int, threshold: int = 4) -> None:
        """Execute `confident` actions after <= `threshold` iterations, else `uncertain`."""
        self.confident, self.uncertain, self.threshold = confident, uncertain, threshold

    def steps(self, num_recurrences: int, chunk_size: int) -> int:
        """Return the horizon of the side of the threshold that `num_recurrences` is on."""
        return min(self.uncertain if num_recurrences > self.threshold else self.confident, chunk_size)


class LinearDecay:
    """8 actions up to 6 iterations, 7 up to 8, then one less per iteration, never below 2."""

    def steps(self, num_recurrences: int, chunk_size: int) -> int:
        """Return 8, 7 or max(2, 7 - (r - 8)), at most the chunk."""
        if num_recurrences <= 6:
            n = 8
        elif num_recurrences <= 8:
            n = 7
        else:
            n = max(2, 7 - (num_recurrences - 8))
        return min(n, chunk_size)


class DynamicBuckets:
    """Buckets by how a decision's iterations compare with all decisions so far, itself included.

    With the running mean m and population deviation s: below m - s, below m, below m + s, and above, four horizons.
    The first decisions, while there are fewer than `warmup`, execute 5 actions.
    """

    def __init__(self, buckets: tuple[int, int, int, int], warmup: int = 5) -> None:
        """Execute `buckets[0]` actions after the fewest iterations, `buckets[3]` after the most."""
        self.buckets = buckets
        self.warmup = warmup
        self._n, self._mean, self._m2 = 0, 0.0, 0.0

    def steps(self, num_recurrences: int, chunk_size: int) -> int:
        """Record `num_recurrences` (Welford's update) and return its bucket, at most the chunk."""
        self._n += 1
        delta = num_recurrences - self._mean
        self._mean += delta / self._n
        self._m2 += delta * (num_recurrences - self._mean)
        if self._n < self.warmup:
            return min(5, chunk_size)
        deviation = math.sqrt(self._m2 / self._n)
        limits = (self._mean - deviation, self._mean, self._mean + deviation)
        return min(self.buckets[sum(num_recurrences >= limit for limit in limits)], chunk_size)


HORIZONS: Mapping[str, Callable[[], Horizon]] = {
    "binary_paper": lambda: Binary(confident=8, uncertain=4),
    "binary": lambda: Binary(confident=8, uncertain=4),
    "binary_released": lambda: Binary(confident=4, uncertain=8),
    "linear_decay": LinearDecay,
    "dynamic": lambda: DynamicBuckets((8, 6, 4, 2)),
    "dynamic_paper": lambda: DynamicBuckets((8, 6, 4, 2)),
    "dynamic_released": lambda: DynamicBuckets((2, 4, 6, 8)),
}


DEFAULT_HORIZON = "5"
"""Of 8 actions, as released."""


def make_horizon(name: str) -> Horizon:
    """Build a horizon from a number of actions (`"5"`) or a name of `HORIZONS`.

    Raises:
        ConfigError: neither a whole number of at least 1 nor a known name.
    """
    if re.fullmatch(r"-?[0-9]+", name):
        return Fixed(int(name))
    if name not in HORIZONS:
        raise ConfigError(f"unknown horizon '{name}' (a number of actions, or a name).{suggest(name, HORIZONS)}")
    return HORIZONS[name]()
