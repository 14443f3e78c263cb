"""Robustness: the LIBERO-PRO variants of the suites."""

from rdvla.errors import ConfigError
from rdvla.report.against import Against, compare_rules
from rdvla.report.load import RuleGroup, Series
from rdvla.report.results.given import Given, options, play, unfinished
from rdvla.report.results.suites import SUITES
from rdvla.report.results.table import Section, Table, rate_cell, words

VARIANTS = ("lan", "object", "swap", "task")
PUBLISHED = "Published: models that solve the unchanged suites collapse to 0 % under object, swap and task."


def pro_table(given: Given) -> Section:
    """Return success by suite and variant under every rule, beside the unchanged suite; names become rows.

    Other policies are compared with the first, suite by suite.

    Raises:
        ConfigError: no episode of a variant.
    """
    rows, missing, comparisons = [], [], list[Against]()
    usual = given.all[0]
    for name, series in given.by_name.items():
        for rule in series.rules:
            for base in SUITES:
                cells = [rule.within(suite) for suite in (base, *(f"{base}_{variant}" for variant in VARIANTS))]
                if not any(cell.played for cell in cells[1:]):
                    continue
                title = ", ".join(part for part in (name, base, rule.name) if part)
                rows.append((words(title), *(rate_cell(cell.summary.rate) for cell in cells)))
                comparisons += _against(usual, name, rule, cells) if series is not usual else []
                absent = [f"{base}_{v}" for v, cell in zip(VARIANTS, cells[1:], strict=True) if not cell.played]
                if absent:
                    needed = play(series, absent, *options(rule), like=rule)
                    missing.append(f"{', '.join(absent)} under {rule.name}: {needed}")
        missing += unfinished(series)
    if not rows:
        wanted = [f"{base}_{variant}" for base in ("libero_object", "libero_spatial") for variant in VARIANTS]
        raise ConfigError(f"no episode of a LIBERO-PRO variant; play {play(given.all[0], wanted)}.")
    columns = ("", "unchanged", *VARIANTS)
    table = Table("", columns, tuple(rows))
    return Section("pro", "LIBERO-PRO", (table,), (PUBLISHED,), tuple(comparisons), tuple(missing))


def _against(usual: Series, name: str, rule: RuleGroup, cells: list[RuleGroup]) -> list[Against]:
    """Return the paired tests of a rule's suites against the usual policy's under the same rule."""
    same = next((each for each in usual.rules if (each.ask, each.way) == (rule.ask, rule.way)), None)
    if same is None:
        return []
    pairs = [(cell, same.within(cell.records[0].suite)) for cell in cells if cell.played]
    return [
        compare_rules(f"{name}, {cell.records[0].suite}, {rule.name},", cell, other)
        for cell, other in pairs
        if cell.matched(other)
    ]
