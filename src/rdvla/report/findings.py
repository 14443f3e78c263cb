"""What the data show, in sentences computed from them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from rdvla.eval.intervals import Rate, wilson
from rdvla.eval.paired import mcnemar
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.summary import summarise_group
from rdvla.policy import ALARM
from rdvla.report.load import RuleGroup, Series

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Pairing:
    """Two rules on the same episodes (same task, initial state and seed).

    Attributes:
        n: episodes that both played.
        only_first: won by the first rule alone.
        only_second: won by the second rule alone.
        p_value: of the exact McNemar test: how often chance alone splits the disagreements this unevenly.
    """

    n: int
    only_first: int
    only_second: int
    p_value: float

    @property
    def differs(self) -> bool:
        """Whether the difference is larger than chance explains at the 5 % level."""
        return self.p_value < SIGNIFICANT

    @property
    def alike(self) -> bool:
        """Whether both played common episodes and chance explains the difference."""
        return self.n > 0 and not self.differs


def pair(first: RuleGroup, second: RuleGroup) -> Pairing:
    """Compare two rules on the episodes that both played."""
    wins = [(one.success, other.success) for one, other in first.matched(second)]
    only_first, only_second = wins.count((True, False)), wins.count((False, True))
    return Pairing(len(wins), only_first, only_second, mcnemar(only_first, only_second))


def best_fixed(series: Series) -> RuleGroup | None:
    """Return the fixed depth of the longest ladder with the surest success, the shallowest of equals.

    Surest is the one whose interval ends highest below: of equally many episodes the highest rate, and 19 of 20 are
    less than 186 of 200.
    """
    return max(series.ladder, key=lambda rule: rule.summary.rate.low, default=None)


def best_adaptive(series: Series) -> RuleGroup | None:
    """Return the adaptive rule with the surest success, the one with fewest iterations of equals.

    Beside fixed depths, it is one that was played by the protocol of the longest ladder, and one that executes chunks
    as the ladder does where there is one.
    """
    rules = series.adaptive
    if series.ladder:
        execution, protocol = series.ladder[0].way
        rules = [rule for rule in rules if rule.way[1] == protocol]
        rules = [rule for rule in rules if rule.way[0] == execution] or rules
    return max(rules, key=lambda rule: (rule.summary.rate.low, -(rule.summary.mean_iterations or 0.0)), default=None)


def headline(series: Sequence[Series]) -> str:
    """Return the result in one sentence; of two rules, on the episodes that both played."""
    first = max(series, key=_surest)
    adaptive, fixed = best_adaptive(first), best_fixed(first)
    prefix = f"{first.label}: " if len(series) > 1 else ""
    if adaptive and fixed and adaptive.way == fixed.way and (common := adaptive.matched(fixed)):
        thought, given = zip(*common, strict=True)
        steps = summarise_group(thought).mean_iterations or 0.0
        return (
            f"{prefix}{percent(_rate(given))} of episodes solved at depth\u00a0{fixed.depth}, "
            f"{percent(_rate(thought))} when the policy decides how long to think, {steps:.1f} steps on average"
        )
    if fixed and fixed is not first.ladder[0] and (common := first.ladder[0].matched(fixed)):
        shallow, deep = zip(*common, strict=True)
        return (
            f"{prefix}{percent(_rate(shallow))} of episodes solved at depth\u00a0{first.ladder[0].depth}, "
            f"{percent(_rate(deep))} at depth\u00a0{fixed.depth}"
        )
    rate = (adaptive or fixed or first.rules[0]).summary.rate
    if not rate.n:
        return f"{prefix}no episode could be played"
    return f"{prefix}{rate.successes} of {rate.n} episode{'s' * (rate.n != 1)} solved"


def _surest(series: Series) -> float:
    return max((rule.summary.rate.low for rule in series.rules if rule.summary.rate.n), default=-1.0)


def _rate(played: Sequence[EpisodeRecord]) -> Rate:
    return wilson(sum(record.success for record in played), len(played))


def about_depth(series: Series) -> list[str]:
    """Return what depth does to success."""
    best = best_fixed(series)
    sentences = []
    if best is not None and len(series.ladder) > 1:
        shallow = series.ladder[0]
        highest = max(rule.summary.rate.value for rule in series.ladder)
        word = "highest" if best.summary.rate.value == highest else "surest"
        if best is shallow:
            sentences.append(
                f"Success is {word} at depth {shallow.depth}, the shallowest evaluated: {full(shallow.summary.rate)}."
            )
        else:
            sentences.append(
                f"Success is {full(shallow.summary.rate)} at depth {shallow.depth} and {word} at depth {best.depth} "
                f"with {full(best.summary.rate)}. {_compare(best, shallow)}"
            )
            sentences.append(_saturation(series, best))
    adaptive = best_adaptive(series)
    if adaptive is not None:
        mean = adaptive.summary.mean_iterations or 0.0
        sentence = f"{adaptive.name} solves {full(adaptive.summary.rate)} with {mean:.2f} iterations on average."
        found = pair(adaptive, best) if best is not None else None
        if best is not None and best.depth and found and found.n:
            points = f"{100 * (found.only_first - found.only_second) / found.n:+.1f}".replace("-", "\u2212")
            sentence += (
                f" That is {points} points against {best.name}, "
                f"with {mean / best.depth * 100:.0f}\u00a0% of its iterations. {_compare(adaptive, best)}"
            )
        sentences.append(sentence)
    return sentences


def _saturation(series: Series, best: RuleGroup) -> str:
    enough = next(rule for rule in series.ladder if rule is best or pair(rule, best).alike)
    if enough is best:
        compared = [pair(rule, best) for rule in series.ladder if (rule.depth or 0) < (best.depth or 0)]
        if any(not found.n or found.only_first > found.only_second for found in compared):
            return f"Whether a shallower depth does as well as depth {best.depth}, common episodes do not say."
        return f"Every shallower depth is measurably worse than depth {best.depth}."
    rate = full(enough.summary.rate)
    return f"The shallowest depth that cannot be told apart from it is depth {enough.depth}, with {rate}."


def _compare(first: RuleGroup, second: RuleGroup) -> str:
    result = pair(first, second)
    if not result.n:
        return "The two played no common episodes."
    verdict = "beyond chance" if result.differs else "within what chance allows"
    return (
        f"Of {result.n} common episodes, {result.only_first} were won by {first.name} alone and {result.only_second} "
        f"by {second.name} alone: {verdict} (exact McNemar test, p\u00a0{p_value(result.p_value)})."
    )


def about_iterations(rule: RuleGroup) -> list[str]:
    """Return how long an adaptive rule thinks, where, and how often it runs into its limit."""
    counts = [count for record in rule.played for count in record.iterations]
    low, high = np.percentile(counts, [10, 90])
    mean = statistics.fmean(counts)
    spread = f"80\u00a0% of them lie between {low:g} and {high:g}, the extremes are {min(counts)} and {max(counts)}."
    sentences = [f"{rule.name}: {mean:.2f} iterations on average over {len(counts):,} decisions; {spread}"]
    if rule.stop is not None:
        limit = sum(count >= rule.stop.max_depth for count in counts)
        how_often = f"in {limit / len(counts) * 100:.1f}\u00a0% of the decisions" if limit else "in no decision"
        sentences.append(f"The limit of {rule.stop.max_depth} iterations was reached {how_often}.")
    thirds = _thirds(rule)
    if thirds is not None:
        sentences.append(
            f"By thirds of an episode: {thirds[0]:.2f} at the beginning, {thirds[1]:.2f} in the middle, "
            f"{thirds[2]:.2f} at the end."
        )
    won = [statistics.fmean(r.iterations) for r in rule.played if r.success]
    lost = [statistics.fmean(r.iterations) for r in rule.played if not r.success]
    if won and lost:
        sentences.append(
            f"Episodes that succeeded took {statistics.fmean(won):.2f} iterations per decision, "
            f"episodes that failed {statistics.fmean(lost):.2f}."
        )
    return sentences


def about_alarm(rule: RuleGroup) -> str:
    """Return what the policy's alarm said of the episodes of a rule; empty if it has none."""
    watched = [record for record in rule.played if ALARM in record.signals]
    if not watched:
        return ""
    found, false, leads = 0, 0, []
    for record in watched:
        raised = [k for k, level in enumerate(record.signals[ALARM]) if level is not None and level > 1]
        if raised:
            found, false = found + (not record.success), false + record.success
            if not record.success and sum(record.executed) == record.steps:  # else decisions' steps are not known
                leads.append(record.steps - sum(record.executed[: raised[0]]))
    solved = sum(record.success for record in watched)
    early = f", {statistics.fmean(leads):.0f} steps before the end on average" if leads else ""
    return (
        f"{rule.name}: the alarm was raised in {found} of {len(watched) - solved} failures{early}, and in {false} of "
        f"{solved} successes."
    )


def _thirds(rule: RuleGroup) -> list[float] | None:
    parts = [list(chain.from_iterable(part)) for part in zip(*map(thirds, rule.played), strict=True)]
    return [statistics.fmean(part) for part in parts] if all(parts) else None


def thirds(record: EpisodeRecord) -> list[tuple[int, ...]]:
    """Return the iterations of the decisions in the first, second and last third of an episode."""
    n = len(record.iterations)
    ends = [0, *(-(-n * part // 3) for part in (1, 2, 3))]
    return [record.iterations[first:last] for first, last in pairwise(ends)]


def about_latency(series: Series) -> list[str]:
    """Return what an iteration costs, from a straight line through the median times of fixed depths.

    They are those of the ladder, if all were played in turns by the same evaluations: machines drift.
    """
    timed = [rule for rule in series.ladder if "decide" in rule.summary.latency_ms]
    if len({frozenset(rule.evaluations) for rule in timed}) > 1:
        return []
    points = [(rule.depth or 0, rule.summary.latency_ms["decide"][0]) for rule in timed]
    if len({depth for depth, _ in points}) < 2:
        return []
    slope, base = np.polyfit([depth for depth, _ in points], [ms for _, ms in points], 1)
    line = "A straight line through the median decision times of the fixed depths gives"
    return [f"{line} {slope:.2f} ms per iteration and {base:.1f} ms for everything else."]


def percent(rate: Rate) -> str:
    """Return a rate as a percentage with one decimal, without a needless zero."""
    return f"{rate.value * 100:.1f}".removesuffix(".0") + "\u00a0%" if rate.n else "no result"


def full(rate: Rate) -> str:
    """Return a rate with n and its interval."""
    interval = f"{rate.low * 100:.0f} to {rate.high * 100:.0f}"
    return f"{percent(rate)} ({rate.successes} of {rate.n}, 95\u00a0% interval {interval}\u00a0%)"


def p_value(p: float) -> str:
    """Return `= 0.03` or `< 0.001`."""
    return "<\u00a00.001" if p < 0.001 else f"=\u00a0{p:.2g}"
