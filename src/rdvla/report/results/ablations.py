"""Ablations: several policies side by side, each against the first on common episodes."""

from collections.abc import Sequence

from rdvla.errors import ConfigError
from rdvla.eval.paired import holm
from rdvla.report.against import Against, compare_rules
from rdvla.report.findings import p_value
from rdvla.report.load import RuleGroup
from rdvla.report.results.given import Given, unfinished
from rdvla.report.results.strategies import per_decision
from rdvla.report.results.table import BLANK, Cell, Section, Table, against_cell, number_cell, rate_cell, words

ONE_TRAINING = (
    "The tests are about the episodes of these policies: how far another training of each would fall, they do not say."
)


def ablations_table(given: Given) -> Section:
    """Return every named policy under every rule of the first, and what differs from that.

    Raises:
        ConfigError: fewer than two names, or runs without one.
    """
    if given.series is not None or len(given.named) < 2:
        raise ConfigError("ablations compare policies by name: give NAME=RUN for every one, the usual one first.")
    usual, *others = given.named
    suites = list(dict.fromkeys(record.suite for series in given.all for record in series.records))
    rows, comparisons, missing = [], [], []
    for base in given.named[usual].rules:
        rows.append(_row(usual, base, suites, BLANK))
        for name in others:
            rule = next((r for r in given.named[name].rules if (r.ask, r.way) == (base.ask, base.way)), None)
            if rule is None or not rule.matched(base):
                missing.append(f"{name} under {base.name}, from the starts of {usual}")
                continue
            comparisons.append(compare_rules(f"{name}, {rule.name},", rule, base))
            rows.append(_row(name, rule, suites, against_cell(comparisons[-1])))
    columns = ("", "rule", *suites, *(["all"] if len(suites) > 1 else []), f"against {usual}, points")
    return Section(
        "ablations",
        "Ablations",
        (Table("", (*columns, "iterations per decision"), tuple(rows)),),
        (*_corrected(comparisons), ONE_TRAINING),
        comparisons=tuple(comparisons),
        missing=(*missing, *(each for series in given.all for each in unfinished(series))),
    )


def _corrected(comparisons: Sequence[Against]) -> list[str]:
    if len(comparisons) < 2:
        return []
    corrected = holm([each.comparison.p_value for each in comparisons])
    each = [f"{one.name} p {p_value(p)}" for one, p in zip(comparisons, corrected, strict=True)]
    return [f"Allowing for {len(comparisons)} comparisons (Holm): {'; '.join(each)}.".replace("\u00a0", " ")]


def _row(name: str, rule: RuleGroup, suites: list[str], difference: Cell) -> tuple[Cell, ...]:
    rates = [rule.within(suite).summary.rate for suite in suites] + ([rule.summary.rate] if len(suites) > 1 else [])
    iterations = number_cell(per_decision(rule.played)) if rule.played else BLANK
    return words(name), words(rule.name), *map(rate_cell, rates), difference, iterations
