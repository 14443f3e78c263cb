"""When to begin to ask the Coda: the gate of a rule on actions (`StopRule.defer`), fitted to traces.

A decision stops where it would without a gate if the gate is open by then, because from there on the rule itself
decides. So the smallest gate that is open by then in a wished share of decisions is a quantile.

Shape suffixes: N decisions, R iterations of the traces.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError
from rdvla.eval.calibration import DIGITS, folds_of, of_fold
from rdvla.eval.paired import Interval, Tasks
from rdvla.eval.replay import GATE, Decisions, metric_of, replay
from rdvla.stops import StopRule


@dataclass(frozen=True)
class Deferred:
    """A rule that defers, beside the same one that does not.

    Intervals (95 %) resample whole tasks, of one task its episodes.

    Attributes:
        rule: with the gate that was fitted on all tasks.
        gates: those that were fitted without the tasks they are measured on; empty if there is only one task.
        same: share of decisions that stop at the same iteration.
        decodings: how often the Coda is asked in a decision.
        plain: the same without a gate.
        iterations: of a decision.
    """

    rule: StopRule
    gates: tuple[float, ...]
    same: Interval
    decodings: Interval
    plain: Interval
    iterations: Interval

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return asdict(self)


def fit_gate(rule: StopRule, decisions: Decisions, share: float, chosen: NDArray[np.bool_] | None = None) -> StopRule:
    """Return `rule` with the smallest gate under which a share of decisions stops where it did.

    Args:
        rule: on actions.
        decisions: traces.
        share: in 0..1, both excluded.
        chosen: the decisions to fit on; None takes all.

    Raises:
        ConfigError: the rule reads no actions, or a share out of range; see `replay`.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share of equal stops must be between 0 and 1, found {share!r}.")
    stops_N = replay(replace(rule, defer=None), decisions).iterations
    change_NR = metric_of(GATE.name, decisions)[:, : rule.max_depth]
    iterations_R = np.arange(1, change_NR.shape[1] + 1)
    counts_NR = (iterations_R >= rule.min_depth) & (iterations_R <= stops_N[:, None]) & np.isfinite(change_NR)
    needed_N = np.where(counts_NR, change_NR, np.inf).min(axis=1)
    needed_N[stops_N == rule.max_depth] = 0  # it ends there with a gate as well
    needed_N = np.sort(needed_N if chosen is None else needed_N[chosen])
    needed = float(needed_N[math.ceil(share * len(needed_N)) - 1])
    if not np.isfinite(needed):
        raise ConfigError(f"no gate keeps {share:.1%} of the stops of {rule}: the change is unknown there.")
    step = 10.0 ** (math.floor(math.log10(max(needed, 1e-12))) - DIGITS + 1)
    return replace(rule, defer=float(f"{(math.floor(needed / step) + 1) * step:.{DIGITS}g}"))


def fit_deferred(rule: StopRule, decisions: Decisions, share: float, folds: int) -> Deferred:
    """Fit a gate, and measure what tasks get that it was not fitted on (with one task: what it gets itself).

    Args:
        rule: on actions, with its threshold.
        decisions: traces.
        share: of decisions that should stop at the same iteration.
        folds: into so many parts the tasks are divided.

    Raises:
        ConfigError: see `fit_gate` and `replay`.
    """
    plain, fitted = replay(replace(rule, defer=None), decisions), fit_gate(rule, decisions, share)
    fold_N = folds_of(decisions.tasks, folds)
    parts = range(fold_N.max() + 1)
    rules = [fitted] if len(parts) < 2 else [fit_gate(rule, decisions, share, fold_N != fold) for fold in parts]
    outcomes = [replay(each, decisions) for each in rules]
    tasks = Tasks(decisions.tasks, decisions.numbers)
    iterations = of_fold(fold_N, [outcome.iterations for outcome in outcomes])
    return Deferred(
        rule=fitted,
        gates=tuple(each.defer for each in rules if each.defer is not None) if len(parts) > 1 else (),
        same=tasks.mean((iterations == plain.iterations).astype(float)),
        decodings=tasks.mean(of_fold(fold_N, [outcome.decodings for outcome in outcomes])),
        plain=tasks.mean(plain.decodings),
        iterations=tasks.mean(iterations),
    )
