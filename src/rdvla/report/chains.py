"""Chains of several stages: their score beside the published one, how often each goal was reached, chains as rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

import numpy as np

from rdvla.eval.paired import Interval, Tasks
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.summary import ChainScore, score_chains
from rdvla.execution import SYNCHRONOUS
from rdvla.report.findings import percent
from rdvla.report.load import RuleGroup, Series
from rdvla.tables import count


@dataclass(frozen=True)
class Published:
    """A published score.

    Attributes:
        source: whose, and under which conditions.
        at_least: share of chains in which at least 1, 2, ... stages were solved in a row.
        average: how many on average.
    """

    source: str
    at_least: tuple[float, ...]
    average: float


PUBLISHED: Mapping[str, Published] = {
    "calvin_d": Published(
        "RD-VLA paper: trained in A, B, C, protocol released", (0.914, 0.795, 0.679, 0.549, 0.453), 3.39
    )
}
"""Suite -> what our numbers stand beside."""


@dataclass(frozen=True)
class StageCell:
    """One stage of one chain.

    Attributes:
        state: `solved`, `failed` or `unreached`.
        words: what it was, and how it went.
    """

    state: str
    words: str


@dataclass(frozen=True)
class ChainRow:
    """One chain: where it started, and its stages."""

    start: str
    cells: tuple[StageCell, ...]

    @property
    def solved(self) -> int:
        """How many stages were solved."""
        return sum(cell.state == "solved" for cell in self.cells)


@dataclass(frozen=True)
class ChainGroup:
    """All chains of one suite under one rule."""

    name: str
    suite: str
    score: ChainScore
    rows: tuple[ChainRow, ...]


@dataclass(frozen=True)
class ChainSection:
    """What the page shows of one policy's chains.

    Attributes:
        groups: the chains, rule by rule.
        goals: names of the goals that were tried.
        published: what to compare with.
    """

    groups: tuple[ChainGroup, ...]
    goals: tuple[str, ...]
    published: tuple[Published, ...]

    @property
    def length(self) -> int:
        """Most stages of a chain."""
        return max(len(group.score.at_least) for group in self.groups)


def chain_section(series: Series) -> ChainSection | None:
    """Return what there is to show; None without chains."""
    chains = [(rule, _chains(rule)) for rule in series.rules]
    suites = {suite for _, found in chains for suite in found}
    groups = [
        _group(f"{rule.name}, {suite}" if len(suites) > 1 else rule.name, suite, played)
        for rule, found in chains
        for suite, played in found.items()
    ]
    if not groups:
        return None
    goals = sorted({goal for group in groups for goal in group.score.goals})
    published = [PUBLISHED[suite] for suite in dict.fromkeys(group.suite for group in groups) if suite in PUBLISHED]
    return ChainSection(tuple(groups), tuple(goals), tuple(published))


def headline(series: Sequence[Series]) -> str | None:
    """Return the best average in one sentence; None unless every episode is a chain."""
    if any(record.num_stages == 1 for one in series for rule in one.rules for record in rule.played):
        return None
    groups = [(one, group) for one in series if (section := chain_section(one)) for group in section.groups]
    if not groups:
        return None
    one, best = max(groups, key=lambda entry: entry[1].score.average.value)
    prefix = f"{one.label}: " if len(series) > 1 else ""
    rule = f" ({best.name}, the highest of {len(groups)})" if len(groups) > 1 else ""
    length, average = len(best.score.at_least), best.score.average
    return (
        f"{prefix}{average.value:.2f} of {length} tasks in a row on average{rule}, "
        f"{percent(best.score.at_least[-1])} of {count(average.n, 'chain')} solved whole"
    )


def by_stage(record: EpisodeRecord) -> list[list[int]] | None:
    """Return the iterations of the decisions of every stage that was begun.

    None where decisions overlap or the robot waited for one (not synchronous, or with a delay): the log does not say
    then in which step a decision was asked for.
    """
    one_by_one = record.strategy == SYNCHRONOUS and not record.delay and sum(record.executed) == record.steps
    if not one_by_one or not record.stages:
        return None
    ends = list(accumulate(stage.steps for stage in record.stages))
    starts = [0, *accumulate(record.executed)][:-1]
    found: list[list[int]] = [[] for _ in ends]
    for stage, taken in zip(np.searchsorted(ends, starts, side="right"), record.iterations, strict=True):
        found[stage].append(taken)
    return found


def stage_means(record: EpisodeRecord) -> list[float]:
    """Return the mean iterations of every stage that was begun; none where `by_stage` knows none."""
    return [fmean(counts) for counts in by_stage(record) or ()]


def by_place(rule: RuleGroup) -> list[tuple[int, Interval]]:
    """Return places in a chain, from 1, with the iterations per decision of the tasks solved there.

    A task that fails goes on to its limit, so it is left out. Intervals resample chains.
    """
    solved = [stage_means(record)[: record.stages_solved] for record in rule.played if record.num_stages > 1]
    columns = ([means[k] for means in solved if len(means) > k] for k in range(max(map(len, solved), default=0)))
    return [(place, each_chain(len(column)).mean(column)) for place, column in enumerate(columns, start=1)]


def each_chain(number: int) -> Tasks:
    """Return chains to be resampled one by one."""
    return Tasks([str(each) for each in range(number)])


def _chains(rule: RuleGroup) -> dict[str, list[EpisodeRecord]]:
    groups: dict[str, list[EpisodeRecord]] = {}
    for record in rule.played:
        if record.num_stages > 1:
            groups.setdefault(record.suite, []).append(record)
    return groups


def _group(name: str, suite: str, played: Sequence[EpisodeRecord]) -> ChainGroup:
    score = score_chains(played)
    assert score is not None, "these are chains"
    rows = sorted(played, key=lambda record: (record.init_state is None, record.init_state, record.placement_seed))
    return ChainGroup(name, suite, score, tuple(map(_row, rows)))


def _row(record: EpisodeRecord) -> ChainRow:
    def place(number: int) -> str:
        return f"{number + 1} of {record.num_stages}: "

    cells = [
        StageCell(
            "solved" if stage.solved else "failed",
            f"{place(number)}{stage.instruction} ({'solved' if stage.solved else 'not solved'} in {stage.steps} steps)",
        )
        for number, stage in enumerate(record.stages)
    ]
    cells += [StageCell("unreached", f"{place(number)}not reached") for number in range(len(cells), record.num_stages)]
    start = str(record.start) if record.init_state is None else f"chain {record.init_state}"
    return ChainRow(start, tuple(cells))
