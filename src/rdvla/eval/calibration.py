"""The threshold for what somebody wants of a stopping rule, and what tasks get that it was not fitted on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError
from rdvla.eval.paired import Interval, Tasks
from rdvla.eval.replay import Decisions, RuleEffect, metric_of, replay
from rdvla.stops import StopRule

Quantity = Literal["depth", "ms", "change"]
DIGITS = 3
"""Significant digits of a threshold."""


@dataclass(frozen=True)
class Target:
    """What is wanted of a rule, on average over decisions.

    Attributes:
        quantity: `depth` (iterations), `ms` (milliseconds of a whole decision, at the costs that the traced episodes
            had) or `change` (mean squared difference of the normalised actions to those at full depth).
        value: at most so much of it.
    """

    quantity: Quantity
    value: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ConfigError(f"{self.quantity} must be a number above 0, found {self.value!r}.")

    def __str__(self) -> str:
        return {
            "depth": f"{self.value:g} iterations",
            "ms": f"{self.value:g} ms a decision",
            "change": f"{self.value:g} from the actions at full depth",
        }[self.quantity]

    def of(self, outcome: RuleEffect, decisions: Decisions) -> NDArray[np.floating[Any]]:
        """Return the quantity of every decision.

        Raises:
            ConfigError: milliseconds, and the records do not say what the stages took.
        """
        if self.quantity == "depth":
            return outcome.iterations.astype(float)
        if self.quantity == "change":
            return outcome.change
        if decisions.costs is None:
            raise ConfigError(
                "the traced episodes do not say what core and Coda took (play them on a CPU, with --stop); drop --ms."
            )
        return outcome.milliseconds(decisions.costs)


@dataclass(frozen=True)
class Got:
    """What a rule does, on average over decisions; intervals (95 %) resample whole tasks, of one task its episodes.

    Attributes:
        iterations: of the core.
        decodings: of the Coda.
        ms: of a whole decision; None without costs.
        change: mean squared difference of the normalised actions to those at full depth.
        change_p95: the same, of the worst decision but 5 %.
    """

    iterations: Interval
    decodings: Interval
    ms: Interval | None
    change: Interval
    change_p95: float


@dataclass(frozen=True)
class Calibrated:
    """A rule with its threshold.

    Attributes:
        rule: fitted on all tasks, or given.
        fitted: what it does on these tasks.
        held_out: what rules do that were fitted in the same way without the tasks they are measured on; None where
            nothing was fitted, or there is only one task.
        thresholds: of these rules.
    """

    rule: StopRule
    fitted: Got
    held_out: Got | None
    thresholds: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return asdict(self)


def fit(base: StopRule, decisions: Decisions, target: Target, chosen: NDArray[np.bool_] | None = None) -> StopRule:
    """Return `base` with the most careful threshold that keeps to the target (of `change`: the least careful).

    It is found by halving: where a mean does not rise steadily with the threshold, there may be others.

    Args:
        base: an adaptive rule, whose threshold is replaced.
        decisions: traces.
        target: what is wanted.
        chosen: the decisions to fit on; None takes all.

    Raises:
        ConfigError: no threshold keeps to the target, every one does (and `chosen` is None), or the traces do not say.
    """
    spec = base.spec
    if spec is None:
        raise ConfigError("a fixed depth has no threshold to calibrate.")
    seen = metric_of(base.name, decisions)
    positive = seen[np.isfinite(seen) & (seen > 0)]
    if not len(positive):
        raise ConfigError(f"the traces of '{base.name}' have no number above 0, so no threshold can be chosen.")
    exponents = math.floor(math.log10(positive.min())), math.ceil(math.log10(positive.max()))
    careful = target.quantity != "change"

    def at(step: int) -> StopRule:
        """Return the rule with threshold number `step`: all numbers of so many digits, rising."""
        exponent, digits = divmod(step, 9 * 10 ** (DIGITS - 1))
        limit = float(f"{digits + 10 ** (DIGITS - 1)}e{exponent - DIGITS + 1}")
        threshold = limit if spec.runs == "below" else float(f"{1 - limit:.{max(0, DIGITS - exponent)}f}")
        return StopRule(base.name, threshold, base.min_depth, base.max_depth)

    def keeps(step: int) -> bool:
        values = target.of(replay(at(step), decisions), decisions)
        return bool((values if chosen is None else values[chosen]).mean() <= target.value)

    per_decade = 9 * 10 ** (DIGITS - 1)
    low, high = (exponent * per_decade for exponent in exponents)
    if spec.runs == "above":
        high = min(high, 0)
    kept, found = (high, low) if careful else (low, high)
    if not keeps(kept):
        best = target.of(replay(at(kept), decisions), decisions)
        best = best if chosen is None else best[chosen]
        raise ConfigError(f"no threshold of '{base.name}' keeps to {target}: it is {best.mean():.3g} at the least.")
    if chosen is None and keeps(found):
        most = target.of(replay(at(found), decisions), decisions).mean()
        raise ConfigError(
            f"every threshold of '{base.name}' keeps to {target}, with {most:.3g} at the most, so nothing is asked "
            "of it: wish for less."
        )
    while abs(found - kept) > 1:  # `kept` keeps to the target
        middle = (found + kept) // 2
        kept, found = (middle, found) if keeps(middle) else (kept, middle)
    return at(kept)


def calibrate(bases: Sequence[StopRule], decisions: Decisions, target: Target | None, folds: int) -> list[Calibrated]:
    """Fit rules to a target, or (without one) replay them as they are.

    Args:
        bases: adaptive rules; with a target, their thresholds are replaced.
        decisions: traces.
        target: what is wanted.
        folds: into so many parts the tasks are divided; each is measured with the rule fitted on the others.

    Raises:
        ConfigError: fewer than 2 folds; see `fit` and `replay`.
    """
    if folds < 2:
        raise ConfigError(f"folds must be at least 2, found {folds}.")
    return [_calibrate(base, decisions, target, folds) for base in bases]


def _calibrate(base: StopRule, decisions: Decisions, target: Target | None, folds: int) -> Calibrated:
    if target is None:
        return Calibrated(base, measure(replay(base, decisions), decisions), None, ())
    rule = fit(base, decisions, target)
    fitted = measure(replay(rule, decisions), decisions)
    fold_N = folds_of(decisions.tasks, folds)
    if not fold_N.any():
        return Calibrated(rule, fitted, None, ())
    others = [fit(base, decisions, target, fold_N != fold) for fold in range(fold_N.max() + 1)]
    outcomes = [replay(other, decisions) for other in others]

    def held_out(read: Callable[[RuleEffect], NDArray[Any]]) -> NDArray[Any]:
        return of_fold(fold_N, [read(outcome) for outcome in outcomes])

    pooled = RuleEffect(held_out(lambda o: o.iterations), held_out(lambda o: o.decodings), held_out(lambda o: o.change))
    thresholds = tuple(other.threshold for other in others if other.threshold is not None)
    return Calibrated(rule, fitted, measure(pooled, decisions), thresholds)


def of_fold(fold_N: NDArray[np.int64], values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return `[N]`: of each thing, what `values` (`[N]` per fold) has for it in its own fold."""
    return np.stack(values)[fold_N, np.arange(len(fold_N))]


def folds_of(tasks: Sequence[str], folds: int) -> NDArray[np.int64]:
    """Return to which part of the tasks each of N belongs, `[N]`, from 0; all to one if there is one task."""
    numbers = {task: number for number, task in enumerate(sorted(set(tasks)))}
    return np.array([numbers[task] for task in tasks]) % min(folds, len(numbers))


def measure(outcome: RuleEffect, decisions: Decisions) -> Got:
    """Return the averages of an outcome, with intervals."""
    tasks = Tasks(decisions.tasks, decisions.numbers)
    ms = None if decisions.costs is None else tasks.mean(outcome.milliseconds(decisions.costs))
    return Got(
        iterations=tasks.mean(outcome.iterations),
        decodings=tasks.mean(outcome.decodings),
        ms=ms,
        change=tasks.mean(outcome.change),
        change_p95=float(np.percentile(outcome.change, 95)),
    )
