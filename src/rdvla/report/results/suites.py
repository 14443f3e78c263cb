"""The four suites: fixed depth and adaptive stopping, beside the paper's."""

from collections.abc import Mapping, Sequence
from itertools import product

from rdvla.errors import ConfigError
from rdvla.eval.intervals import Rate, average
from rdvla.report.against import Against, compare_rules
from rdvla.report.load import RuleGroup, Series
from rdvla.report.results.given import DEPTH, Given, adaptive, play, rule_at, unfinished
from rdvla.report.results.strategies import per_decision
from rdvla.report.results.table import (
    BLANK,
    Cell,
    Section,
    Table,
    against_cell,
    number_cell,
    rate_cell,
    share_cell,
    words,
)

SUITES = {"libero_spatial": "Spatial", "libero_object": "Object", "libero_goal": "Goal", "libero_10": "Long"}

PAPER: Mapping[str, tuple[float, ...]] = {
    "the paper, depth 12": (0.920, 0.990, 0.960, 0.848),
    "the paper, adaptive": (0.886, 0.988, 0.968, 0.858),
}
"""Row -> published success by suite, in the order of `SUITES` (a policy of 0.5 B parameters)."""

EQUAL_TERMS = (
    "The paper's policy has 0.5 B parameters and was trained on other data: its numbers say where the method was "
    "published to stand, and are no comparison on equal terms."
)
NUM_TASKS = 10
"""Of each of these suites."""


def suites_table(given: Given) -> Section:
    """Return success by suite at depth 12 and under every adaptive rule, and the rules' paired difference.

    Raises:
        ConfigError: no episode of these suites at depth 12 or under an adaptive rule.
    """
    series = given.one("suites")
    wanted = [rule.within(*SUITES) for rule in series.rules if rule.depth == DEPTH or rule.adaptive]
    rules = [rule for rule in wanted if rule.played]
    if not rules:
        needed = play(series, list(SUITES), "--depth", str(DEPTH))
        raise ConfigError(
            f"no episode of {', '.join(SUITES)} at depth {DEPTH} or under an adaptive rule; play {needed}."
        )
    rows, comparisons, unpaired = [], [], []
    for rule in rules:
        rows.append(_row(rule))
        fixed = rule_at(series, DEPTH, like=rule)
        fixed = None if fixed is None else fixed.within(*SUITES)
        if fixed is not None and fixed.label != rule.label and rule.matched(fixed):
            comparisons.append(compare_rules(rule.name, rule, fixed))
            rows.append(_difference(rule, fixed, comparisons[-1]))
        elif fixed is None or fixed.label != rule.label:
            execution = f"executed as {rule.way[0]}"
            unpaired.append(f"depth {DEPTH} from the same starts, {execution}, to compare {rule.name} with")
    rows += [
        (words(name), *map(share_cell, shares), share_cell(sum(shares) / len(shares)), BLANK)
        for name, shares in PAPER.items()
    ]
    columns = ("", *SUITES.values(), "average", "iterations per decision")
    return Section(
        "suites",
        "Four suites of LIBERO",
        (Table("", columns, tuple(rows)),),
        (EQUAL_TERMS,),
        comparisons=tuple(comparisons),
        missing=(*_missing(series, rules), *unpaired, *unfinished(series)),
    )


def _row(rule: RuleGroup) -> tuple[Cell, ...]:
    found = [rule.within(suite) for suite in SUITES]
    rates = [each.summary.rate for each in found]
    whole = _average(rates) if all(rate.n for rate in rates) else BLANK
    iterations = per_decision([record for each in found for record in each.played])
    return (words(rule.name), *map(rate_cell, rates), whole, number_cell(iterations))


def _average(rates: Sequence[Rate]) -> Cell:
    mean = average(rates)
    text = f"{100 * mean.value:.1f} % ({100 * mean.low:.0f}-{100 * mean.high:.0f})"
    return Cell(text, number_cell(mean).value)


def _difference(rule: RuleGroup, fixed: RuleGroup, whole: Against) -> tuple[Cell, ...]:
    cells = []
    for suite in SUITES:
        both = rule.within(suite), fixed.within(suite)
        cells.append(against_cell(compare_rules("", *both)) if both[0].matched(both[1]) else BLANK)
    ratio = whole.comparison.ratios.get("iterations per decision")
    saved = BLANK if ratio is None else number_cell(ratio, 100, "+", 0)
    name = f"difference to {fixed.name}, points (under average: all episodes); iterations, %"
    return (words(name), *cells, against_cell(whole) if BLANK not in cells else BLANK, saved)


def _missing(series: Series, rules: Sequence[RuleGroup]) -> list[str]:
    found = []
    for suite, rule in product(SUITES, rules):
        tasks = {record.task_id for record in rule.within(suite).records}
        if 0 < len(tasks) < NUM_TASKS:
            absent = [str(number) for number in range(NUM_TASKS) if number not in tasks]
            found.append(f"{suite} tasks {', '.join(absent)} under {rule.name}")
    for what, played, options in (
        (f"depth {DEPTH}", [rule for rule in rules if not rule.adaptive], ("--depth", str(DEPTH))),
        ("an adaptive rule", [rule for rule in rules if rule.adaptive], adaptive(series)),
    ):
        absent = [suite for suite in SUITES if not any(rule.within(suite).played for rule in played)]
        if absent:
            found.append(f"{', '.join(absent)} under {what}: {play(series, absent, *options)}")
    return found
