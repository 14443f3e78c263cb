"""CALVIN: how many tasks in a row beside the paper, and iterations by place in the chain."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from rdvla.errors import ConfigError
from rdvla.eval.intervals import wilson
from rdvla.eval.paired import Interval, Pair, Side, compare, mcnemar
from rdvla.eval.ranks import rank_correlation
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.summary import score_chains
from rdvla.execution import SYNCHRONOUS
from rdvla.report.chains import PUBLISHED, Published, by_stage, each_chain, stage_means
from rdvla.report.findings import SIGNIFICANT, p_value
from rdvla.report.load import RuleGroup
from rdvla.report.results.given import DEPTH, Given, play, rule_at, unfinished
from rdvla.report.results.table import (
    BLANK,
    Cell,
    Section,
    Table,
    correlation_text,
    number_cell,
    paired_cell,
    rate_cell,
    share_cell,
    words,
)
from rdvla.tables import count

SUITE = "calvin_d"


def chains_table(given: Given) -> Section:
    """Return how many tasks are solved in a row by rule, and iterations by place; named runs become further rows.

    Raises:
        ConfigError: no run has chains.
    """
    scores: list[tuple[str, list[EpisodeRecord], RuleGroup, RuleGroup | None]] = []
    places, sentences = [], []
    for name, series in given.by_name.items():
        for rule in series.rules:
            for suite in dict.fromkeys(record.suite for record in rule.played if record.num_stages > 1):
                here = rule.within(suite)
                chains = here.played
                title = ", ".join(part for part in (name, rule.name, suite, chains[0].protocol) if part)
                fixed = rule_at(series, DEPTH, like=rule)
                fixed = None if fixed is None or fixed.label == rule.label or not here.matched(fixed) else fixed
                scores.append((title, chains, here, fixed))
                sentences += [_more(title, here, fixed)] if fixed else []
                known = [record for record in chains if by_stage(record) is not None]
                if rule.adaptive and known:
                    places.append(_places(title, known))
                    sentences += [*_later(title, known), _goals(title, known)]
    if not scores:
        needed = play(given.all[0], [SUITE], "--stop", "action_mse", "--strategy", SYNCHRONOUS)
        raise ConfigError(f"no run has chains of several tasks; play {needed} with a policy for CALVIN.")
    length = max(record.num_stages for _, chains, *_ in scores for record in chains)
    head = ("", *(f"{least} in a row" for least in range(1, length + 1)), "average", "iterations per decision")
    rows = []
    for title, chains, rule, fixed in scores:
        rows += [_row(title, chains, length), *([_difference(rule, fixed, length)] if fixed else [])]
    rows += [
        _published(PUBLISHED[suite], length)
        for suite in PUBLISHED
        if suite in {chains[0].suite for _, chains, *_ in scores}
    ]
    needed = play(given.all[0], [SUITE], "--stop", "action_mse", "--strategy", SYNCHRONOUS)
    adaptive = f"an adaptive rule, executed synchronously: {needed}"
    thinks = any(rule.summary.mean_iterations for series in given.all for rule in series.rules)  # an expert does not
    missing = [adaptive] if thinks and not places else []
    return Section(
        "chains",
        "CALVIN: tasks in a row",
        (Table("", head, tuple(rows)), *places),
        tuple(sentences),
        missing=(*missing, *(each for series in given.all for each in unfinished(series))),
    )


def _row(title: str, chains: Sequence[EpisodeRecord], length: int) -> tuple[Cell, ...]:
    score = score_chains(chains)
    assert score is not None, "these are chains"
    mean = each_chain(len(chains)).interval(lambda total: _per_decision(total, chains))
    rates = [*map(rate_cell, score.at_least), *[BLANK] * (length - len(score.at_least))]
    return words(title), *rates, number_cell(score.average), number_cell(mean) if mean.value else BLANK


def _published(score: Published, length: int) -> tuple[Cell, ...]:
    shares = [*map(share_cell, score.at_least), *[BLANK] * (length - len(score.at_least))]
    return words(score.source), *shares, Cell(f"{score.average:.2f}", score.average), BLANK


def _difference(rule: RuleGroup, fixed: RuleGroup, length: int) -> tuple[Cell, ...]:
    """Return, of the chains that both played, by how much the rule is ahead; every chain is drawn by itself."""
    shared = rule.matched(fixed)
    cells = []
    for least in range(1, length + 1):
        won = [(one.stages_solved >= least, other.stages_solved >= least) for one, other in shared]
        cells.append(paired_cell(compare([Pair(str(k), Side(a, {}), Side(b, {})) for k, (a, b) in enumerate(won)])))
    ahead, behind = [one for one, _ in shared], [other for _, other in shared]
    saved = each_chain(len(shared)).interval(
        lambda total: _per_decision(total, ahead) / _per_decision(total, behind) - 1,
    )
    name = f"difference to {fixed.name}, points; average; iterations, %"
    return words(name), *cells, number_cell(_mean(_ahead(rule, fixed)), sign="+"), number_cell(saved, 100, "+", 0)


def _per_decision(total: Callable[[Sequence[float]], Any], chains: Sequence[EpisodeRecord]) -> Any:
    """Return the iterations of a decision, from a function that adds up one number per chain."""
    iterations, decisions = [sum(record.iterations) for record in chains], [len(record.iterations) for record in chains]
    return total(iterations) / total(decisions)


def _ahead(rule: RuleGroup, fixed: RuleGroup) -> list[float]:
    """Return how many more tasks in a row the rule solves, of every common chain."""
    return [float(one.stages_solved - other.stages_solved) for one, other in rule.matched(fixed)]


def _more(title: str, rule: RuleGroup, fixed: RuleGroup) -> str:
    ahead = _ahead(rule, fixed)
    mean = _mean(ahead)
    score = f"{number_cell(mean, sign='+').text} tasks in a row"
    verdict = _judged(ahead, mean, "beyond chance", "beyond chance", "within what chance allows")
    return f"{title} against {fixed.name}, {count(len(ahead), 'common chain')}: {score}, {verdict}."


def _judged(differences: Sequence[float], mean: Interval, more: str, less: str, neither: str) -> str:
    """Return what differences of chains show: neither, unless their mean and the exact sign test both exclude 0.

    The interval alone has no width where a few chains agree.
    """
    p = mcnemar(sum(each > 0 for each in differences), sum(each < 0 for each in differences))
    said = neither if p >= SIGNIFICANT else more if mean.low > 0 else less if mean.high < 0 else neither
    return f"{said} (sign test p {p_value(p)})".replace("\u00a0", " ")


def _places(title: str, chains: Sequence[EpisodeRecord]) -> Table:
    rows = []
    for place in range(max(len(record.stages) for record in chains)):
        begun = [record for record in chains if len(record.stages) > place]
        solved = [stage_means(record) for record in begun if record.stages[place].solved]
        rate = rate_cell(wilson(len(solved), len(begun)))
        mean = number_cell(_mean([stage_means(record)[place] for record in begun]))
        more = _mean([means[place] - means[0] for means in solved]) if place and solved else None
        rows.append((Cell(str(place + 1), place + 1), rate, mean, number_cell(more, sign="+") if more else BLANK))
    head = ("place", "solved when begun", "iterations per decision", "solved tasks against the first of the chain")
    return Table(f"Iterations by place in the chain: {title}", head, tuple(rows))


def _mean(values: Sequence[float]) -> Interval:
    return each_chain(len(values)).mean(values)


def _later(title: str, chains: Sequence[EpisodeRecord]) -> list[str]:
    """Return whether later tasks take more iterations; of solved tasks, as a failing one goes on to its limit."""
    several = [means for record in chains if len(means := stage_means(record)[: record.stages_solved]) > 1]
    if not several:
        return []
    more = [fmean(means[1:]) - means[0] for means in several]
    mean = _mean(more)
    sentence = (
        f"{title}: later solved tasks against the first of the same chain, {count(len(several), 'chain')}: "
        f"{number_cell(mean, sign='+').text} iterations per decision, "
        f"{_judged(more, mean, 'more', 'less', 'no measurable difference')}."
    )
    return [sentence]


def _goals(title: str, chains: Sequence[EpisodeRecord]) -> str:
    """Return whether goals that fail more often, once begun, take more iterations; solved stages only."""
    taken: dict[str, list[float]] = {}
    tried: dict[str, list[bool]] = {}
    for record in chains:
        for stage, counts in zip(record.stages, by_stage(record) or (), strict=False):
            tried.setdefault(stage.name, []).append(stage.solved)
            if stage.solved:
                taken.setdefault(stage.name, []).append(fmean(counts))
    iterations = [fmean(means) for means in taken.values()]
    failures = [1 - fmean(tried[goal]) for goal in taken]
    what = f"{title}: iterations of a goal where it is solved, and how often it fails once begun, {len(taken)} goals"
    found = rank_correlation(iterations, failures, [""] * len(taken))
    return f"{what}: {correlation_text(found, len(taken))}."
