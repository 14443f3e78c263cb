"""Confidence intervals of success rates and of means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdvla.errors import ConfigError

Z_95 = 1.959963984540054
"""Two-sided 95 % point of the standard normal distribution."""
RESAMPLES = 10_000
"""How often things are drawn again for an interval."""


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % Wilson interval.

    Attributes:
        successes: episodes won.
        n: episodes played.
        low: lower end of the interval, 0..1.
        high: upper end of the interval, 0..1.
    """

    successes: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Return the observed rate, 0..1 (NaN without episodes)."""
        return self.successes / self.n if self.n else math.nan

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return {
            "n": self.n,
            "successes": self.successes,
            "success_rate": self.value if self.n else None,
            "wilson_95": [self.low, self.high],
        }


def wilson(successes: int, n: int) -> Rate:
    """Return the 95 % Wilson score interval of `successes` out of `n` (the whole of [0, 1] for n = 0).

    Args:
        successes: 0..`n`.
        n: number of independent trials.

    Raises:
        ConfigError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ConfigError(f"successes must lie in 0..n, found {successes} of {n}.")
    if n == 0:
        return Rate(0, 0, 0.0, 1.0)
    p, z = successes / n, Z_95
    scale = 1 / (1 + z * z / n)
    centre = (p + z * z / (2 * n)) * scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) * scale
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Rate(successes, n, low, high)


@dataclass(frozen=True)
class Mean:
    """A mean with its interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        n: how many values.
    """

    value: float
    low: float
    high: float
    n: int


def average(rates: Sequence[Rate]) -> Mean:
    """Return the mean of independent rates, each counted once, with the 95 % interval that their own intervals give.

    The distances to the ends of the single intervals are squared and added (Newcombe 1998), so that rates of 0 and 1
    do not end the interval at themselves.

    Args:
        rates: at least one, each with episodes.
    """
    value = float(np.mean([rate.value for rate in rates]))
    below = math.hypot(*(rate.value - rate.low for rate in rates)) / len(rates)
    above = math.hypot(*(rate.high - rate.value for rate in rates)) / len(rates)
    return Mean(value, value - below, value + above, sum(rate.n for rate in rates))


def bootstrap_mean(counts: Sequence[int]) -> Mean:
    """Return the mean of whole numbers with its 95 % percentile bootstrap interval, the same at every call.

    Args:
        counts: at least one, each at least 0.
    """
    values, frequencies = np.unique(counts, return_counts=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(counts), frequencies / len(counts), size=RESAMPLES) @ values / len(counts)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Mean(float(np.mean(counts)), float(low), float(high), len(counts))
