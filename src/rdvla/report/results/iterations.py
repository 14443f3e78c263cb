"""How many iterations tasks and parts of an episode take by themselves, and whether that goes with difficulty."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from rdvla.errors import ConfigError
from rdvla.eval.intervals import wilson
from rdvla.eval.paired import Interval, Tasks
from rdvla.eval.ranks import rank_correlation
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.summary import group_by
from rdvla.report.findings import thirds
from rdvla.report.load import RuleGroup, task_words
from rdvla.report.results.given import DEPTH, Given, play, rule_at, unfinished
from rdvla.report.results.strategies import per_decision
from rdvla.report.results.table import BLANK, Cell, Section, Table, correlation_text, number_cell, rate_cell, words

BY_CONSTRUCTION = (
    "A failing episode goes on to its limit and may think long there, so failures under the rule itself and iterations "
    "of all episodes come together by construction; iterations of solved episodes do not have this."
)
FEW = 5
"""Fewer episodes of a task have no interval: resampled, two would say that the truth lies between them."""
PARTS = ("beginning", "middle", "end")
TaskName = tuple[str, int]
ByTask = Mapping[TaskName, Sequence[EpisodeRecord]]


def iterations_table(given: Given) -> Section:
    """Return iterations by task and third of an episode under every adaptive rule, beside failures at depth 1.

    Raises:
        ConfigError: no episode under an adaptive rule.
    """
    series = given.one("iterations")
    suites = list(dict.fromkeys(record.suite for record in series.records))
    if not series.adaptive:
        raise ConfigError(f"no episode under an adaptive rule; play {play(series, suites, '--stop', 'action_mse')}.")
    tables, sentences, absent = [], [], dict[tuple[str, str], tuple[RuleGroup, set[int]]]()
    for rule in series.adaptive:
        found = _by_task(rule)
        fixed = {depth: rule_at(series, depth, like=rule) for depth in (1, DEPTH)}
        failed = {f"depth {depth}": _by_task(each) for depth, each in fixed.items() if each}
        failed["the rule itself"] = found
        absent.setdefault(rule.way, (rule, set()))[1].update(depth for depth, each in fixed.items() if each is None)
        tables += [_tasks(rule, found, failed), _together(rule, found, failed)]
        sentences += [
            _phases(f"{rule.name}, {name} episodes", played)
            for name, played in (("all", rule.played), ("solved", [each for each in rule.played if each.success]))
        ]
    missing = []
    for rule, depths in absent.values():
        wanted = ",".join(map(str, sorted(depths)))
        missing += [f"depth {wanted}: {play(series, suites, '--depth', wanted, like=rule)}"] if depths else []
    return Section(
        "iterations",
        "Iterations by task and part of an episode",
        tuple(tables),
        (*sentences, BY_CONSTRUCTION),
        missing=(*missing, *unfinished(series)),
    )


def _by_task(rule: RuleGroup) -> ByTask:
    groups = group_by(rule.played, lambda record: (record.suite, record.task_id))
    return {name: [record for record in group if isinstance(record, EpisodeRecord)] for name, group in groups.items()}


def _tasks(rule: RuleGroup, found: ByTask, failed: Mapping[str, ByTask]) -> Table:
    most = sorted(found, key=lambda name: -_mean(found[name]))
    rows = [
        (
            words(f"{suite} {number}: {task_words(found[suite, number])}"),
            number_cell(_over_episodes(found[suite, number])),
            *_by_part(found[suite, number]),
            *(_solved(by_task.get((suite, number), ())) for by_task in failed.values()),
        )
        for suite, number in most
    ]
    whole = number_cell(per_decision(rule.played))
    solved = [_solved([record for group in by_task.values() for record in group]) for by_task in failed.values()]
    columns = ("", "iterations per decision", *PARTS, *(f"solved under {name}" for name in failed))
    return Table(
        f"{rule.name}, most iterations first", columns, (*rows, (words("all"), whole, *_by_part(rule.played), *solved))
    )


def _solved(played: Sequence[EpisodeRecord]) -> Cell:
    return rate_cell(wilson(sum(record.success for record in played), len(played)))


def _mean(played: Sequence[EpisodeRecord]) -> float:
    return fmean(count for record in played for count in record.iterations)


def _by_part(played: Sequence[EpisodeRecord]) -> list[Cell]:
    parts = [[count for part in column for count in part] for column in zip(*map(thirds, played), strict=True)]
    return [Cell(f"{fmean(part):.2f}", fmean(part)) if part else BLANK for part in parts]


def _over_episodes(played: Sequence[EpisodeRecord]) -> Interval | float:
    if len(played) < FEW:
        return _mean(played)
    iterations, decisions = [sum(record.iterations) for record in played], [len(record.iterations) for record in played]
    each = Tasks([str(number) for number in range(len(played))])
    return each.interval(lambda total: total(iterations) / total(decisions))


def _phases(name: str, played: Sequence[EpisodeRecord]) -> str:
    """Return how the middle and the end of an episode differ from its beginning, resampling tasks."""
    whole = [(record, thirds(record)) for record in played if len(record.iterations) >= len(PARTS)]
    if not whole:
        return f"{name}: none is long enough to divide."
    tasks = Tasks([f"{record.suite} {record.task_id}" for record, _ in whole])
    more = [
        f"{part} {number_cell(tasks.mean([fmean(parts[k]) - fmean(parts[0]) for _, parts in whole]), sign='+').text}"
        for k, part in enumerate(PARTS)
        if k
    ]
    return f"{name}, iterations per decision against the beginning of the same episode: {', '.join(more)}."


def _together(rule: RuleGroup, found: ByTask, failed: Mapping[str, ByTask]) -> Table:
    """Return the rank correlation of tasks' iterations with how often they fail, over all tasks and within suites."""
    solved = {task: won for task, group in found.items() if (won := [record for record in group if record.success])}
    rows = []
    for name, by_task in failed.items():
        for which, taken in (("all", found), ("solved", solved)):
            shared = [task for task in taken if task in by_task]
            iterations = [_mean(taken[task]) for task in shared]
            failures = [fmean(not record.success for record in by_task[task]) for task in shared]
            groupings = [[""] * len(shared), [suite for suite, _ in shared]]
            cells = [_correlated(iterations, failures, groups) for groups in groupings]
            rows.append((words(name), words(which), *cells, Cell(str(len(shared)), len(shared))))
    columns = ("failures under", "iterations of episodes", "rank correlation", "within suites", "tasks")
    return Table(f"{rule.name}: do tasks that fail more take more iterations?", columns, tuple(rows))


def _correlated(iterations: Sequence[float], failures: Sequence[float], groups: Sequence[str]) -> Cell:
    result = rank_correlation(iterations, failures, groups)
    value = number_cell(result.value).value | {"p_value": result.p_value} if result else None
    return Cell(correlation_text(result, len(groups)).removeprefix("rank correlation "), value)
