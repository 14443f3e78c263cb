"""Two ways to act on the same episodes: who won what, what was saved, and whether that is enough for a verdict.

Episodes of one task resemble each other, so intervals of means and ratios resample whole tasks; of a single task (so of
chains) its episodes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError
from rdvla.eval.intervals import RESAMPLES, Z_95

Z_POWER = 0.8416212335729143
"""Standard normal quantile of a power of 80 %."""


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One side of an episode.

    Attributes:
        success: whether it was solved.
        totals: what it took, summed over the episode (`decisions`, `iterations`, `ms`, ...).
    """

    success: bool
    totals: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """An episode that both sides played; `task` names what resembles."""

    task: str
    first: Side
    second: Side


Verdict = Literal["better", "non-inferior", "worse", "undecided"]


@dataclass(frozen=True)
class Comparison:
    """The first side against the second.

    Attributes:
        n: episodes that both played.
        tasks: how many tasks they are of.
        wins: solved by the first side alone.
        losses: solved by the second alone.
        p_value: of the exact McNemar test: how often chance alone splits the disagreements this unevenly.
        difference: of the success rates, with the score interval for paired episodes (Tango).
        by_task: the same difference with the interval that resamples tasks (of one task: episodes).
        margin: the loss of success that would not matter.
        verdict: `better` if both intervals lie above 0, `non-inferior` if both lie above -margin, `worse` if both lie
            below 0, else `undecided`. What is worse but by less than the margin counts as non-inferior.
        needed: episodes at which a pair without a true difference would be found non-inferior in four of five
            experiments, at the disagreement and the resemblance within tasks seen here.
        ratios: what the first side takes for each of what the second takes, minus 1: -0.3 saves 30 %.
    """

    n: int
    tasks: int
    wins: int
    losses: int
    p_value: float
    difference: Interval
    by_task: Interval
    margin: float
    verdict: Verdict
    needed: int
    ratios: Mapping[str, Interval]

    @property
    def more(self) -> int:
        """How many more episodes the verdict needs; 0 once there is one.

        If even `needed` were too few, or the first side lost the margin or more here, the two differ: then as many as
        tell the observed difference from 0 or from -margin, whichever takes fewer.
        """
        if self.verdict != "undecided":
            return 0
        if self.needed > self.n and self.difference.value > -self.margin:
            return self.needed - self.n
        gap = max(self.margin + self.difference.value, -self.difference.value)
        return max(1, math.ceil(self.needed * (self.margin / gap) ** 2) - self.n)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return {**asdict(self), "more": self.more}


QUANTITIES: Mapping[str, tuple[str, str | None]] = {
    "iterations per decision": ("iterations", "decisions"),
    "decisions per episode": ("decisions", None),
    "iterations per episode": ("iterations", None),
    "ms per decision": ("ms", "decisions"),
    "ms per episode": ("ms", None),
}
"""What is compared: a total, by another total or by the number of episodes."""


MARGIN = 0.05
"""A loss of success that would not matter, as a share, where nobody says."""


def compare(pairs: Sequence[Pair], *, margin: float = MARGIN) -> Comparison:
    """Compare both sides of the pairs, at least one; the same at every call.

    Raises:
        ConfigError: no pair, or a margin outside 0..1.
    """
    if not pairs:
        raise ConfigError("the two have no episode in common (same task, start and seed), so nothing can be compared.")
    if not 0 < margin < 1:
        raise ConfigError(f"margin must be a share of the episodes between 0 and 1, e.g. 0.05, found {margin!r}.")
    n = len(pairs)
    wins = sum(pair.first.success > pair.second.success for pair in pairs)
    losses = sum(pair.second.success > pair.first.success for pair in pairs)
    resampled = Tasks([pair.task for pair in pairs])
    by_task = resampled.mean([float(pair.first.success) - float(pair.second.success) for pair in pairs])
    difference = Interval((wins - losses) / n, *tango(wins, losses, n))
    low, high = min(difference.low, by_task.low), max(difference.high, by_task.high)
    return Comparison(
        n=n,
        tasks=resampled.count,
        wins=wins,
        losses=losses,
        p_value=mcnemar(wins, losses),
        difference=difference,
        by_task=by_task,
        margin=margin,
        verdict=_verdict(low, high, margin),
        needed=_needed(wins + losses, n, margin, difference, by_task),
        ratios=_ratios(pairs, resampled),
    )


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided exact p-value of `wins` against `losses` disagreements (binomial with one half)."""
    n = wins + losses
    tail: float = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that allow for how many there are (Holm 1979), in the same order."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def tango(wins: int, losses: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of the difference of two paired rates (Tango 1998), in -1..1.

    Args:
        wins: pairs that only the first solved.
        losses: pairs that only the second solved.
        n: all pairs, at least 1.
    """

    def score(difference: float) -> float:
        """Return how many deviations the observed difference lies above `difference`."""
        b = (2 * n - wins + losses) * difference - wins - losses
        c = -losses * difference * (1 - difference)
        lost = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # most likely share of losses, given that
        variance = n * (2 * lost + difference * (1 - difference))
        distance = wins - losses - n * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    observed = (wins - losses) / n
    return _crossing(score, Z_95, -1.0, observed), _crossing(score, -Z_95, observed, 1.0)


def _crossing(score: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Return where the falling function `score` passes `value` within an interval, by halving it."""
    for _ in range(60):
        middle = (low + high) / 2
        if score(middle) > value:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@lru_cache(maxsize=2)
def _draws(parts: int) -> NDArray[np.float64]:
    """Return how often each of `parts` is in each resample, float64 `[RESAMPLES, parts]`: always the same ones."""
    drawn = np.random.default_rng(0).multinomial(parts, np.full(parts, 1 / parts), size=RESAMPLES).astype(np.float64)
    drawn.flags.writeable = False
    return drawn


class Tasks:
    """Things of several tasks, resampled by task; of a single task by its episodes, which say nothing of other tasks.

    Attributes:
        count: how many tasks there are.
    """

    def __init__(self, tasks: Sequence[str], episodes: Sequence[object] | None = None) -> None:
        """Take the task of every thing, and its episode; without `episodes` every thing is one."""
        self.count = len(set(tasks))
        parts: Sequence[object] = tasks
        if self.count == 1:
            parts = range(len(tasks)) if episodes is None else episodes
        numbers = {name: number for number, name in enumerate(dict.fromkeys(parts))}
        self._parts = len(numbers)
        self._of_thing = np.array([numbers[part] for part in parts])

    def interval(self, statistic: Callable[[Callable[[Sequence[float]], Any]], Any]) -> Interval:
        """Return a statistic of totals over things with its percentile interval.

        Args:
            statistic: gets a function from one value per thing to their total, or to their totals in every resample.
        """

        def totals(values: Sequence[float]) -> NDArray[np.float64]:
            by_part = np.bincount(self._of_thing, weights=np.asarray(values, dtype=float), minlength=self._parts)
            return np.asarray(_draws(self._parts) @ by_part, dtype=np.float64)

        value = float(statistic(lambda values: float(np.sum(np.asarray(values, dtype=float)))))
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.asarray(statistic(totals))
        low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
        return Interval(value, float(low), float(high))

    def mean(self, values: Sequence[float] | NDArray[Any]) -> Interval:
        """Return the mean of one value per thing with its percentile interval."""
        numbers, ones = [float(value) for value in values], [1.0] * len(values)
        return self.interval(lambda total: total(numbers) / total(ones))


def _verdict(low: float, high: float, margin: float) -> Verdict:
    if low > 0:
        return "better"
    if low > -margin:
        return "non-inferior"
    return "worse" if high < 0 else "undecided"


def _needed(disagreements: int, n: int, margin: float, difference: Interval, by_task: Interval) -> int:
    share = (disagreements + 1) / (n + 2)
    alone, together = difference.high - difference.low, by_task.high - by_task.low
    resemblance = max(1.0, (together / alone) ** 2) if alone > 0 else 1.0
    return math.ceil((Z_95 + Z_POWER) ** 2 * share * resemblance / margin**2)


def _ratios(pairs: Sequence[Pair], tasks: Tasks) -> dict[str, Interval]:
    known = set.intersection(*({*pair.first.totals} & {*pair.second.totals} for pair in pairs))
    ratios = {}
    for name, (total, by) in QUANTITIES.items():
        if total not in known or (by is not None and by not in known):
            continue
        sides = [[(pair.first, pair.second)[side].totals for pair in pairs] for side in (0, 1)]
        if not all(sum(each[total] for each in side) > 0 for side in sides):
            continue

        def ratio(
            summed: Callable[[Sequence[float]], Any],
            total: str = total,
            by: str | None = by,
            sides: Sequence[Sequence[Mapping[str, float]]] = sides,
        ) -> Any:
            first, second = (summed([each[total] for each in side]) for side in sides)
            if by is None:
                return first / second - 1
            first_by, second_by = (summed([each[by] for each in side]) for side in sides)
            return (first / first_by) / (second / second_by) - 1

        ratios[name] = tasks.interval(ratio)
    return ratios
