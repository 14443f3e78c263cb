"""`rdvla report A --against B`: every rule of A against one of B, on the episodes that both played."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rdvla.errors import ConfigError, suggest
from rdvla.eval.paired import MARGIN, Comparison, Interval, Pair, Side, compare
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.summary import summarise_group
from rdvla.files import write_json
from rdvla.report.load import RuleGroup, Run, Series, group_runs, say_starts
from rdvla.tables import count

_log = logging.getLogger(__name__)

CLOCKS = ("policy.total", "decide")
"""Stages that say how long a decision took, the better first."""


@dataclass(frozen=True)
class Against:
    """A rule against the baseline.

    Attributes:
        name: of the rule, and of its policy if that is another.
        baseline: of the other.
        differences: what else differs, in words; empty if nothing does.
        clock: the stage behind the milliseconds; empty if no time was recorded.
        in_turns: whether both episodes of every pair are of one evaluation, which plays its rules in turns. Else
            milliseconds compare the machine at two times, too.
        comparison: the numbers.
    """

    name: str
    baseline: str
    differences: tuple[str, ...]
    clock: str
    in_turns: bool
    comparison: Comparison

    @property
    def judgement(self) -> list[str]:
        """What is said of success, in words."""
        c = self.comparison
        margin = f"{c.margin * 100:g} points"
        verdicts = {
            "better": "better beyond chance",
            "non-inferior": f"not worse by {margin} or more",
            "worse": f"worse beyond chance, and {margin} are not excluded",
            "undecided": f"undecided at a margin of {margin}: about {c.more} more episodes of this kind would tell",
        }
        resampled = "tasks" if c.tasks > 1 else "episodes"
        played = f"{count(c.n, 'episode')} of {count(c.tasks, 'task')}"
        won = f"{c.wins} won by the first alone, {c.losses} by the second alone"
        score, tasks = _points(c.difference, ends=True), _points(c.by_task, ends=True)
        return [
            f"{played}: {won} (exact McNemar test, p = {c.p_value:.2g})",
            f"success {_points(c.difference)} points (95 % {score}; resampling {resampled} {tasks})",
            f"verdict: {verdicts[c.verdict]}",
        ]

    @property
    def sentences(self) -> list[str]:
        """The same, and what is saved."""
        lines = self.judgement
        for name, ratio in self.comparison.ratios.items():
            clock = f" ({self.clock})" if name.startswith("ms") else ""
            drift = ", not played in turns: machines drift" if clock and not self.in_turns else ""
            saved = f"{_percent(ratio.value)} ({_percent(ratio.low)} to {_percent(ratio.high)})"
            lines.append(f"{name}{clock} {saved}{drift}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return {**asdict(self), "comparison": self.comparison.as_json()}


def compare_runs(
    runs: Sequence[Run], others: Sequence[Run], *, baseline: str | None = None, margin: float = MARGIN
) -> list[Against]:
    """Compare every rule of `runs` with one of `others`; the log names those that share no episode with it.

    Args:
        runs: evaluations.
        others: evaluations with the baseline; they may be the same.
        baseline: label or name of its rule, behind that of its policy if there are several (`usual, depth 12`); None
            takes the only one.
        margin: the loss of success that would not matter.

    Raises:
        ConfigError: no such rule, several and none named, nothing left to compare, no common episode, or rules of
            benchmarks that differ.
    """
    its_policy, second = _baseline(others, baseline)
    found: list[Against] = []
    apart: list[str] = []
    for series in group_runs(runs):
        for rule in (_without_itself(each, second) for each in series.rules):
            if not rule.played:
                continue
            name = rule.name if series.identity == its_policy.identity else f"{series.label}, {rule.name}"
            if rule.matched(second):
                found.append(compare_rules(name, rule, second, margin))
            else:
                apart.append(f"{name} ({say_starts(rule.played)})")
    if apart and found:
        _log.warning("no episode in common with %s (%s): %s", second.name, say_starts(second.played), "; ".join(apart))
    if apart and not found:
        raise ConfigError(
            f"no episode in common (same task, start and seed) with {second.name}, {say_starts(second.played)}: "
            f"{'; '.join(apart)}; so nothing can be compared."
        )
    if not found:
        raise ConfigError("there is no rule to compare with the baseline; name another folder or --baseline.")
    return found


def _without_itself(rule: RuleGroup, baseline: RuleGroup) -> RuleGroup:
    """Return `rule` without episodes that are the baseline's own: the same records of the same evaluations."""
    own = {(baseline.folders[id(record)], record.key, record.seed) for record in baseline.played}
    kept = tuple(r for r in rule.records if (rule.folders[id(r)], r.key, r.seed) not in own)
    return rule if len(kept) == len(rule.records) else replace(rule, records=kept, summary=summarise_group(kept))


def _baseline(runs: Sequence[Run], label: str | None) -> tuple[Series, RuleGroup]:
    groups = group_runs(runs)
    rules = [(series, rule) for series in groups for rule in series.rules if rule.played]
    if not rules:
        raise ConfigError("no episode of the baseline could be played.")
    if label is None:
        if len(rules) > 1:
            each = (f"{policy.label}, {rule.name}" if len(groups) > 1 else rule.label for policy, rule in rules)
            names = "; ".join(each)
            raise ConfigError(f"the baseline has several rules; name one with --baseline: {names}.")
        return rules[0]
    chosen = [(policy, rule) for policy, rule in rules if label in _callable(policy.label, rule)]
    if len(chosen) > 1:
        several = "; ".join(f"{policy.label}, {rule.name}" for policy, rule in chosen)
        raise ConfigError(f"the baseline has several rules '{label}'; name one of: {several}.")
    if not chosen:
        known = [name for policy, rule in rules for name in _callable(policy.label, rule)]
        raise ConfigError(f"the baseline has no rule '{label}'.{suggest(label, known)}")
    return chosen[0]


def _callable(policy: str, rule: RuleGroup) -> list[str]:
    """Return what a rule may be called on the command line."""
    return [rule.label, rule.name, f"{policy}, {rule.label}", f"{policy}, {rule.name}"]


def compare_rules(name: str, first: RuleGroup, second: RuleGroup, margin: float = MARGIN) -> Against:
    """Compare two rules on the episodes that both played; `name` is that of the first.

    Raises:
        ConfigError: they played none in common, or by different protocols.
    """
    shared = first.matched(second)
    clock = next(
        (stage for stage in CLOCKS if all(stage in record.latency_ms for both in shared for record in both)), ""
    )
    pairs = [Pair(f"{one.suite} {one.task_id}", _side(one, clock), _side(other, clock)) for one, other in shared]
    differences = _differences(shared)
    comparison = compare(pairs, margin=margin)
    in_turns = all(first.folders[id(one)] == second.folders[id(other)] for one, other in shared)
    return Against(name, second.name, differences, clock if pairs else "", in_turns, comparison)


def _side(record: EpisodeRecord, clock: str) -> Side:
    totals = {"decisions": float(len(record.iterations)), "iterations": float(sum(record.iterations))}
    if clock:
        totals["ms"] = sum(record.latency_ms[clock])
    return Side(record.success, totals)


def _differences(shared: Sequence[tuple[EpisodeRecord, EpisodeRecord]]) -> tuple[str, ...]:
    """Return what differs beside the rule.

    Raises:
        ConfigError: the episodes were played by different rules of the benchmark.
    """
    named: dict[str, None] = {}
    for one, other in shared:
        if one.protocol != other.protocol:
            raise ConfigError(
                f"{one.suite} was played by different protocols ('{one.protocol}', '{other.protocol}'): not comparable."
            )
        facts = [_facts(record) for record in (one, other)]
        for name in {**facts[0], **facts[1]}:
            values = [each.get(name, "unknown") for each in facts]
            if values[0] != values[1]:
                named[f"{name}: {values[0]} against {values[1]}"] = None
    return tuple(named)


def _facts(record: EpisodeRecord) -> Mapping[str, str]:
    return {"execution": record.execution, "instruction": record.instruction, **record.versions}


def _points(interval: Interval, *, ends: bool = False) -> str:
    if ends:
        return f"{interval.low * 100:+.1f} to {interval.high * 100:+.1f}"
    return f"{interval.value * 100:+.1f}"


def _percent(ratio: float) -> str:
    return f"{ratio * 100:+.1f} %"


def format_comparisons(comparisons: Sequence[Against]) -> str:
    """Return them as plain text."""
    parts = []
    for each in comparisons:
        lines = [f"{each.name}  against  {each.baseline}"]
        lines += [f"  {sentence}" for sentence in each.sentences]
        lines += [f"  also differs: {difference}" for difference in each.differences]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write_comparisons(comparisons: Sequence[Against], path: Path) -> None:
    """Write every number as JSON.

    Raises:
        StorageError: the file cannot be written.
    """
    content = {"schema": 1, "comparisons": [each.as_json() for each in comparisons]}
    write_json(path, content)
