"""Success against depth, and what holds of the paper's claim: 0 % at depth 1, above 90 % at 4, flat from 8 to 12."""

from collections.abc import Mapping
from dataclasses import dataclass

from rdvla.errors import ConfigError
from rdvla.eval.paired import MARGIN
from rdvla.eval.records import AnyRecord
from rdvla.eval.summary import group_by, summarise_group
from rdvla.report.against import Against, compare_rules
from rdvla.report.findings import SIGNIFICANT, full
from rdvla.report.load import RuleGroup, Series
from rdvla.report.results.given import WHOLE, Given, play, unfinished
from rdvla.report.results.table import BLANK, Cell, Section, Table, rate_cell

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""What the table would like to have."""

ENOUGH, ENOUGH_RATE = 4, 0.9
FLAT_FROM, FLAT_TO = 8, 12
NUM_HARDEST = 6
HINT = (
    "Most failures over all depths together (a run of these tasks alone, as hardest=RUN, gets its own column), solved:"
)

Ladder = Mapping[int, RuleGroup]
"""Depth -> its episodes."""


def depth_table(given: Given) -> Section:
    """Return success by depth and suite; runs with a name (`hardest=RUN`) have a column of their own.

    Raises:
        ConfigError: a policy with fewer than two depths, or with depths that were played in several ways.
    """
    ladders = {name: _ladder(series) for name, series in given.named.items()}
    columns = dict(ladders)
    if given.series is not None:
        whole = _ladder(given.series)
        suites = dict.fromkeys(record.suite for rule in whole.values() for record in rule.records)
        by_suite = {name: {depth: rule.within(name) for depth, rule in whole.items()} for name in suites}
        together = {(WHOLE if len(suites) > 1 else next(iter(suites))): whole}
        ladders = together | ladders
        columns = by_suite | ladders
    depths = sorted({depth for ladder in columns.values() for depth in ladder})
    rows = [(Cell(str(depth), depth), *(_cell(ladder, depth) for ladder in columns.values())) for depth in depths]
    hint = [] if given.series is None or given.named else [f"{HINT} {'; '.join(_hardest(given.series))}."]
    claims = [_judge(name, ladder) for name, ladder in ladders.items()]
    return Section(
        "depth",
        "Success against depth",
        (Table("", ("depth", *columns), tuple(rows)),),
        (*(claim.sentence for claim in claims), *hint),
        tuple(each for claim in claims for each in claim.comparisons),
        (*_missing(given), *(each for series in given.all for each in unfinished(series))),
    )


def _ladder(series: Series) -> Ladder:
    ladder = {rule.depth: rule for rule in series.fixed if rule.depth is not None}
    if len(series.ladders) > 1 or len(ladder) < len(series.fixed):
        names = "; ".join(rule.name for rule in series.fixed)
        raise ConfigError(
            f"{series.label} was played in several ways, which one curve cannot show ({names}); name the runs of one."
        )
    if len(ladder) < 2:
        options = ("--depth", ",".join(map(str, DEPTHS)))
        suites = list(dict.fromkeys(record.suite for record in series.records))
        raise ConfigError(f"{series.label} was not played at several depths; play {play(series, suites, *options)}.")
    return ladder


def _cell(ladder: Ladder, depth: int) -> Cell:
    return rate_cell(ladder[depth].summary.rate) if depth in ladder else BLANK


@dataclass(frozen=True)
class _Judged:
    sentence: str
    comparisons: tuple[Against, ...]


def _judge(name: str, ladder: Ladder) -> _Judged:
    """Return what of the paper's claim holds, in one sentence, and the paired tests between depths."""
    parts = []
    if 1 in ladder:
        rate = ladder[1].summary.rate
        words = "does not hold" if rate.successes else "holds" if rate.high < MARGIN else "is undecided"
        parts.append(f"0 % at depth 1 {words}: {full(rate)}")
    if ENOUGH in ladder:
        rate = ladder[ENOUGH].summary.rate
        words = "holds" if rate.low > ENOUGH_RATE else "does not hold" if rate.high < ENOUGH_RATE else "is undecided"
        parts.append(f"above {ENOUGH_RATE:.0%} at depth {ENOUGH} {words}: {full(rate)}".replace("90%", "90 %"))
    deepest = max(ladder)
    steps = [(ENOUGH, FLAT_FROM), (FLAT_FROM, FLAT_TO)] + ([(FLAT_TO, deepest)] if deepest > FLAT_TO else [])
    both = [step for step in steps if all(depth in ladder for depth in step)]
    apart = [step for step in both if not ladder[step[1]].matched(ladder[step[0]])]
    found = {step: _gain(name, ladder, *step) for step in both if step not in apart}
    for (low, high), against in found.items():
        if low >= FLAT_FROM:
            parts.append(f"a plateau from {low} to {high} {_flat(against)}")
    unknown = [str(depth) for depth in (1, ENOUGH, FLAT_FROM, FLAT_TO) if depth not in ladder]
    left = f" Not played: depth {', '.join(unknown)}." if unknown else ""
    left += "".join(f" Depths {low} and {high} were not played from the same starts." for low, high in apart)
    return _Judged(f"{name}, the paper's claim: {'; '.join(parts) or 'cannot be judged'}.{left}", tuple(found.values()))


def _gain(name: str, ladder: Ladder, low: int, high: int) -> Against:
    return compare_rules(f"{name}, depth {high}", ladder[high], ladder[low])


def _flat(against: Against) -> str:
    found = against.comparison
    beyond = found.p_value < SIGNIFICANT
    gain = f"{100 * found.difference.value:+.1f} points, {'beyond' if beyond else 'within'} chance"
    ends = (found.difference.low, found.by_task.low, found.difference.high, found.by_task.high)
    if all(abs(end) < MARGIN for end in ends):
        return f"holds: {gain}, a change of {100 * MARGIN:.0f} points is excluded"
    if beyond:
        return f"does not hold: {gain}"
    return f"is undecided: {gain}, a change of {100 * MARGIN:.0f} points is not excluded"


def _missing(given: Given) -> list[str]:
    series = given.series
    if series is None:
        return []
    suites = list(dict.fromkeys(record.suite for record in series.records))
    absent = [str(depth) for depth in DEPTHS if depth not in {rule.depth for rule in series.fixed}]
    needed = play(series, suites, "--depth", ",".join(absent), like=series.ladder[0])
    return [f"depth {', '.join(absent)}: {needed}"] if absent else []


def _hardest(series: Series) -> list[str]:
    """Return the tasks with the lowest success over all depths together, which favours no depth."""

    def task(record: AnyRecord) -> tuple[str, int]:
        return record.suite, record.task_id

    groups = group_by((record for rule in series.fixed for record in rule.records), task)
    rates = {name: summarise_group(group).rate for name, group in groups.items()}
    lowest = sorted((name for name in rates if rates[name].n), key=lambda name: (rates[name].value, name))[:NUM_HARDEST]
    return [
        f"{suite} {number} ({rates[suite, number].successes} of {rates[suite, number].n})" for suite, number in lowest
    ]
