"""Robustness: the LIBERO-PRO variants of the suites."""

from rdvla.errors import ConfigError
from rdvla.report.results.given import Given, options, play, unfinished
from rdvla.report.results.suites import SUITES
from rdvla.report.results.table import Section, Table, rate_cell, words

VARIANTS = ("lan", "object", "swap", "task")
PUBLISHED = "Published: models that solve the unchanged suites collapse to 0 % under object, swap and task."


def pro_table(given: Given) -> Section:
    """Return success by suite and variant under every rule, beside the unchanged suite; names become rows.

    Raises:
        ConfigError: no episode of a variant.
    """
    rows, missing = [], []
    for name, series in given.by_name.items():
        for rule in series.rules:
            for base in SUITES:
                cells = [rule.within(suite) for suite in (base, *(f"{base}_{variant}" for variant in VARIANTS))]
                if not any(cell.played for cell in cells[1:]):
                    continue
                title = ", ".join(part for part in (name, base, rule.name) if part)
                rows.append((words(title), *(rate_cell(cell.summary.rate) for cell in cells)))
                absent = [f"{base}_{v}" for v, cell in zip(VARIANTS, cells[1:], strict=True) if not cell.played]
                if absent:
                    missing.append(f"{', '.join(absent)} under {rule.name}: {play(series, absent, *options(rule))}")
        missing += unfinished(series)
    if not rows:
        wanted = [f"{base}_{variant}" for base in ("libero_object", "libero_spatial") for variant in VARIANTS]
        raise ConfigError(f"no episode of a LIBERO-PRO variant; play {play(given.all[0], wanted)}.")
    columns = ("", "unchanged", *VARIANTS)
    return Section("pro", "LIBERO-PRO", (Table("", columns, tuple(rows)),), (PUBLISHED,), missing=tuple(missing))
