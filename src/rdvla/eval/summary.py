"""Scores with intervals, iterations and latencies of groups of episodes.

The score of episodes with one stage is their success rate. Of episodes with several it is how many stages are solved in
a row: the rate of at least 1, 2, ..., and the average.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from rdvla.eval.intervals import Mean, Rate, bootstrap_mean, wilson
from rdvla.eval.records import AnyRecord, EpisodeRecord

RULE = ("rule", "horizon", "strategy", "delay")
"""What tells apart the ways a policy was driven."""

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class ChainScore:
    """How many stages episodes solved in a row.

    Attributes:
        at_least: the rate of episodes that solved at least 1, 2, ... stages.
        average: how many they solved on average, with its bootstrap interval; where all solved as many, that has no
            width, and its ends are the sums of those of `at_least`.
        goals: name of a stage's goal -> how often it was solved when it was begun.
    """

    at_least: tuple[Rate, ...]
    average: Mean
    goals: dict[str, Rate]

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return {
            "at_least": [rate.as_json() for rate in self.at_least],
            "average": self.average.value,
            "interval_95": [self.average.low, self.average.high],
            "goals": {name: rate.as_json() for name, rate in self.goals.items()},
        }


@dataclass(frozen=True)
class Summary:
    """A group of episodes in numbers.

    Attributes:
        rate: successes, episodes and interval; errors are in neither.
        errors: episodes that could not be played.
        mean_iterations: mean over all decisions; None without decisions.
        mean_steps: mean length of the successful episodes in control steps; None without any.
        signals: name -> mean over all decisions that have it.
        latency_ms: stage -> (median, 95th percentile) over all decisions, in milliseconds.
        chain: the score of episodes with several stages; None where every episode has one, or they are of several
            suites.
    """

    rate: Rate
    errors: int
    mean_iterations: float | None
    mean_steps: float | None
    signals: dict[str, float]
    latency_ms: dict[str, tuple[float, float]]
    chain: ChainScore | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return {
            **self.rate.as_json(),
            **({"chain": self.chain.as_json()} if self.chain else {}),
            "errors": self.errors,
            "mean_iterations": self.mean_iterations,
            "mean_steps_of_successes": self.mean_steps,
            "signals": self.signals,
            "latency_ms": {stage: {"p50": p50, "p95": p95} for stage, (p50, p95) in self.latency_ms.items()},
        }


def summarise_group(records: Iterable[AnyRecord]) -> Summary:
    """Return the numbers of one group."""
    group = list(records)
    played = [record for record in group if isinstance(record, EpisodeRecord)]
    iterations = [count for record in played for count in record.iterations]
    steps = [record.steps for record in played if record.success]
    return Summary(
        rate=wilson(sum(record.success for record in played), len(played)),
        errors=len(group) - len(played),
        mean_iterations=statistics.fmean(iterations) if iterations else None,
        mean_steps=statistics.fmean(steps) if steps else None,
        signals=_signals(played),
        latency_ms=latencies(played),
        chain=score_chains(played),
    )


def _signals(played: Sequence[EpisodeRecord]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for record in played:
        for name, column in record.signals.items():
            values.setdefault(name, []).extend(value for value in column if value is not None)
    return {name: statistics.fmean(found) for name, found in values.items() if found}


def score_chains(played: Sequence[EpisodeRecord]) -> ChainScore | None:
    """Return the score of the episodes with several stages; None without any, or if they are of several suites."""
    played = [record for record in played if record.num_stages > 1]
    if len({record.suite for record in played}) != 1:
        return None
    length = max(record.num_stages for record in played)
    solved = [record.stages_solved for record in played]
    goals: dict[str, list[bool]] = {}
    for record in played:
        for stage in record.stages:
            goals.setdefault(stage.name, []).append(stage.solved)
    at_least = tuple(wilson(sum(each >= count for each in solved), len(solved)) for count in range(1, length + 1))
    average = bootstrap_mean(solved)
    if average.low == average.high:  # all chains are alike, so resampling them shows nothing of what others would do
        average = replace(average, low=sum(rate.low for rate in at_least), high=sum(rate.high for rate in at_least))
    return ChainScore(
        at_least=at_least,
        average=average,
        goals={name: wilson(sum(found), len(found)) for name, found in sorted(goals.items())},
    )


def latencies(played: Sequence[EpisodeRecord]) -> dict[str, tuple[float, float]]:
    """Return the median and 95th percentile of every stage over all decisions, in milliseconds."""
    stages = list(dict.fromkeys(stage for record in played for stage in record.latency_ms))
    percentiles = {}
    for stage in stages:
        values = [value for record in played for value in record.latency_ms.get(stage, ())]
        if values:
            p50, p95 = np.percentile(values, [50, 95])
            percentiles[stage] = (round(float(p50), 3), round(float(p95), 3))
    return percentiles


def group_by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return the items by `key`, groups and members in order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def summarise(records: Sequence[AnyRecord]) -> dict[str, Any]:
    """Return the content of `summary.json`: the numbers per rule, per rule and suite, per rule and task."""
    levels: dict[str, tuple[str, ...]] = {
        "rules": RULE,
        "suites": ("suite", *RULE),
        "tasks": ("suite", "task_id", "task", *RULE),
    }
    return {level: _table(records, names) for level, names in levels.items()}


def _table(records: Sequence[AnyRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    groups = group_by(records, lambda record: tuple(getattr(record, name) for name in names))
    return [
        dict(zip(names, values, strict=True)) | summarise_group(group).as_json() for values, group in groups.items()
    ]
