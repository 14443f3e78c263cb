"""Execution strategies: what adaptive stopping and adaptive horizons save of an episode's iterations, paired."""

from collections.abc import Callable, Sequence

from rdvla.errors import ConfigError
from rdvla.eval.paired import Interval, Tasks
from rdvla.eval.records import EpisodeRecord
from rdvla.execution import SYNCHRONOUS
from rdvla.report.against import Against, compare_rules
from rdvla.report.load import RuleGroup, Series
from rdvla.report.results.given import DEPTH, Given, adaptive, play, unfinished
from rdvla.report.results.table import BLANK, Cell, Section, Table, against_cell, number_cell, rate_cell, words

HORIZONS = ("binary_paper", "binary_released", "dynamic_paper", "linear_decay")
"""What the table would like to have of an adaptive rule, beside a fixed horizon."""

SAME = {"binary": "binary_paper", "dynamic": "dynamic_paper"}
PER_EPISODE = "iterations per episode"
PAPER = "The paper: up to 34 % fewer iterations, most with the binary horizon."


def strategies_table(given: Given) -> Section:
    """Return, by rule and horizon, success, what an episode takes, and both against depth 12 with a fixed horizon.

    Raises:
        ConfigError: no episodes at depth 12 with a fixed horizon.
    """
    series = given.one("strategies")
    at_depth = [rule for rule in series.fixed if rule.depth == DEPTH and _fixed_horizon(rule)]
    if not at_depth:
        suites = list(dict.fromkeys(record.suite for record in series.records))
        needed = play(series, suites, "--depth", str(DEPTH))
        raise ConfigError(f"no episode at depth {DEPTH} with a fixed horizon to compare with; play {needed}.")
    base = min(at_depth, key=lambda rule: (rule.records[0].delay, rule.ask.warm_start != "noise"))
    found = [(rule, _against(rule, base)) for rule in (*at_depth, *series.adaptive)]
    takes = ("iterations per decision", "decisions per episode", PER_EPISODE)
    columns = ("", "success", f"against {base.name}, points", *takes, f"{PER_EPISODE}, % against {base.name}")
    compared = [(rule, against) for rule, against in found if against is not None]
    return Section(
        "strategies",
        "Execution strategies",
        (Table("", columns, tuple(_row(rule, against) for rule, against in found)),),
        (_best(compared), PAPER),
        tuple(against for _, against in compared),
        (*_missing(series), *unfinished(series)),
    )


def _fixed_horizon(rule: RuleGroup) -> bool:
    first = rule.records[0]
    return first.strategy == SYNCHRONOUS and first.horizon.isdigit()


def _against(rule: RuleGroup, base: RuleGroup) -> Against | None:
    return compare_rules(rule.name, rule, base) if rule is not base and rule.matched(base) else None


def _row(rule: RuleGroup, against: Against | None) -> tuple[Cell, ...]:
    played = rule.played
    saved = against.comparison.ratios.get(PER_EPISODE) if against else None
    return (
        words(rule.name),
        rate_cell(rule.summary.rate),
        against_cell(against) if against else BLANK,
        number_cell(per_decision(played)),
        number_cell(_per_episode(played, lambda record: len(record.iterations)), digits=1),
        number_cell(_per_episode(played, lambda record: sum(record.iterations)), digits=0),
        number_cell(saved, 100, "+", 1) if saved else BLANK,
    )


def per_decision(played: Sequence[EpisodeRecord]) -> Interval:
    """Return the mean iterations of a decision, with the interval that resamples tasks."""
    iterations, decisions = [sum(record.iterations) for record in played], [len(record.iterations) for record in played]
    return _tasks(played).interval(lambda total: total(iterations) / total(decisions))


def _per_episode(played: Sequence[EpisodeRecord], number: Callable[[EpisodeRecord], int]) -> Interval:
    return _tasks(played).mean([number(record) for record in played])


def _tasks(played: Sequence[EpisodeRecord]) -> Tasks:
    return Tasks([f"{record.suite} {record.task_id}" for record in played])


def _best(compared: Sequence[tuple[RuleGroup, Against]]) -> str:
    enough = [each for _, each in compared if each.comparison.verdict in ("better", "non-inferior")]
    enough = [each for each in enough if PER_EPISODE in each.comparison.ratios]
    if not enough:
        return "No strategy is shown to be as good as the fixed depth, so nothing is said of what it saves."
    best = min(enough, key=lambda each: each.comparison.ratios[PER_EPISODE].value)
    margin = f"{100 * best.comparison.margin:g} points"
    saved = number_cell(best.comparison.ratios[PER_EPISODE], 100, "+", 1).text
    return f"Of the strategies shown not to be worse by {margin}, {best.name} takes fewest: {saved} % {PER_EPISODE}."


def _missing(series: Series) -> list[str]:
    suites = list(dict.fromkeys(record.suite for record in series.records))
    played = {record.horizon for rule in series.adaptive for record in rule.played}
    absent = [name for name in HORIZONS if name not in {SAME.get(name, name) for name in played}]
    if not any(name.isdigit() for name in played):
        absent.insert(0, "5")
    if not absent:
        return []
    needed = play(series, suites, *adaptive(series), "--horizon", ",".join(absent))
    return [f"an adaptive rule with the horizons {', '.join(absent)}: {needed}"]
