"""Whether one number of a task goes with another: Spearman's rank correlation, also within groups of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdvla.eval.paired import Interval

DRAWS = 2_000
"""Resamples, and shuffles of the test."""
FEWEST = 3
"""Fewer things have no rank correlation."""
UNDEFINED = 0.01
"""Largest share of resamples without a correlation that an interval may leave out."""

Array = NDArray[np.float64]
Members = Sequence[NDArray[np.intp]]
"""The places of every group."""


@dataclass(frozen=True)
class Correlation:
    """A rank correlation.

    Attributes:
        value: -1..1, with the percentile interval that resamples things within their groups; a number alone where more
            than 1 % of the resamples hold no difference, because the rest would leave out what chance may do.
        p_value: how often chance alone, shuffling within groups, gives one as far from 0.
    """

    value: Interval | float
    p_value: float


def rank_correlation(first: Sequence[float], second: Sequence[float], groups: Sequence[str]) -> Correlation | None:
    """Return how two numbers of the same things go together, the same at every call.

    Ranks are taken over all things, less the mean of their group: one group for all gives Spearman's correlation,
    several leave out what separates the groups. None of fewer than three things, and where one of the numbers does not
    differ within any group.
    """
    if len(groups) < FEWEST:
        return None
    names = np.asarray(groups)
    order = np.argsort(names, kind="stable")
    x, y, names = np.asarray(first, float)[order], np.asarray(second, float)[order], names[order]
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    value = float(_correlate(x[None], y[None], members)[0])
    if np.isnan(value):
        return None
    rng = np.random.default_rng(0)
    chosen = np.concatenate([rng.choice(each, (DRAWS, len(each))) for each in members], axis=1)
    drawn = _correlate(x[chosen], y[chosen], members)
    defined = drawn[np.isfinite(drawn)]
    shuffled = np.tile(y, (DRAWS, 1))
    for each in members:
        shuffled[:, each] = rng.permuted(shuffled[:, each], axis=1)
    by_chance = _correlate(np.tile(x, (DRAWS, 1)), shuffled, members)
    as_far = int(np.sum(np.abs(by_chance) >= abs(value) - 1e-9))
    p_value = (as_far + 1) / (DRAWS + 1)
    if len(defined) < (1 - UNDEFINED) * DRAWS:
        return Correlation(value, p_value)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Correlation(Interval(value, float(low), float(high)), p_value)


def _correlate(x: Array, y: Array, members: Members) -> Array:
    """Return the correlation of every row of x and y `[draws, n]`; not a number where one does not differ."""
    a, b = _ranks(x, members), _ranks(y, members)
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    found: Array = np.divide((a * b).sum(1), scale, out=np.full(len(x), np.nan), where=scale > 1e-9)
    return found


def _ranks(values: Array, members: Members) -> Array:
    """Return the ranks in every row, ties shared, each less the mean of its group."""
    this, other = values[:, :, None], values[:, None, :]
    ranks = np.asarray((this > other).sum(2) + (this == other).sum(2) / 2, dtype=np.float64)
    for each in members:
        ranks[:, each] -= ranks[:, each].mean(1, keepdims=True)
    return ranks
