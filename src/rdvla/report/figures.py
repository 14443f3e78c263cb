"""The figures, each drawn for a given width in pixels (the page holds a wide and a narrow one of each)."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from rdvla.eval.records import EpisodeRecord
from rdvla.eval.summary import group_by, summarise_group
from rdvla.report.chains import by_place
from rdvla.report.findings import full, percent
from rdvla.report.load import RuleGroup, Series, task_words
from rdvla.report.svg import Drawing, Point, Scale, axis_x, axis_y, decades, nice_ticks, spread

NARROW_BELOW = 480
"""Below this width labels move above their marks and ticks get fewer."""

_LEFT = 52
"""Pixels beside a figure for what is written at its vertical axis."""

_LETTER = 7.3
"""Pixels that a letter of a label takes."""

POSITION_BINS = 15
MIN_DECISIONS = 10
"""A point of a curve is drawn only if it stands for at least this many decisions (or a tenth of them, if fewer)."""


@dataclass(frozen=True)
class _Label:
    at: Point
    text: str
    css: str


def success_against_depth(series: Sequence[Series], width: int) -> str:
    """Draw success rates with intervals over depth; adaptive rules stand at their mean iterations."""
    several = len(series) > 1
    names = [_ladder_name(one, rules, several=several) for one in series for rules in one.ladders]
    right = 24 if width < NARROW_BELOW else max(190, 20 + round(_LETTER * max(map(len, names), default=0)))
    height = 300 if width < NARROW_BELOW else 400
    drawing = Drawing(width, height, "Success rate against the number of thinking steps")
    depths = sorted({rule.depth for s in series for rule in s.fixed if rule.depth})
    means = [rule.summary.mean_iterations or 1.0 for s in series for rule in s.adaptive]
    positions = [float(depth) for depth in depths] + means
    x = Scale((min(1.0, *positions), max(2.0, *positions)), (_LEFT, width - right), log=True)
    y = Scale((0.0, 1.0), (height - 52, 34))
    axis_y(drawing, y, [(v / 100, f"{v} %") for v in (0, 25, 50, 75, 100)], (44, width - right + 8), "episodes solved")
    marked = depths if len(depths) > 1 else [2**k for k in range(10) if x.domain[0] <= 2**k <= x.domain[1]]
    ticks = [(float(depth), str(depth)) for depth in marked]
    axis_x(drawing, x, _thin(ticks, x), height - 52, "thinking steps per decision")
    labels: list[_Label] = []
    for number, one in enumerate(series):
        labels += _depth_curves(drawing, one, x, y, f"c{number % 6}", several=several)
    if width >= NARROW_BELOW:
        _labels_right(drawing, labels, width - right + 16, (30, height - 56))
    marks = [(one, number, rule) for number, one in enumerate(series) for rule in one.adaptive]
    named = len({number for _, number, _ in marks}) > 1
    adaptive = [
        _adaptive_mark(
            drawing,
            rule,
            x,
            y,
            f"c{number % 6}" if several else f"a{index % 4}",
            index,
            one if named else None,
        )
        for index, (one, number, rule) in enumerate(marks)
    ]
    if width >= NARROW_BELOW:
        _labels_on_stems(drawing, adaptive)
        return str(drawing)
    return str(drawing) + _legend(labels + adaptive)


def _depth_curves(drawing: Drawing, series: Series, x: Scale, y: Scale, css: str, *, several: bool) -> list[_Label]:
    """Draw the longest ladder with everything known about it, others as thin lines."""
    labels: list[_Label] = []
    for rules in series.ladders[1:]:
        points = [_success(drawing, series, rule, x, y, css) for rule in rules]
        drawing.path(points, f"line other {css}")
        labels.append(_Label(points[-1], _ladder_name(series, rules, several=several), css))
    return labels + _depth_curve(drawing, series, x, y, css, several=several) if series.ladder else labels


def _depth_curve(drawing: Drawing, series: Series, x: Scale, y: Scale, css: str, *, several: bool) -> list[_Label]:
    rules = series.ladder
    labels = []
    suites = group_by((r for rule in rules for r in rule.records), lambda record: record.suite)
    if not several and len(suites) > 1:
        for suite in suites:
            if points := _suite_points(rules, suite, x, y):
                drawing.path(points, "line thin suite")
                labels.append(_Label(points[-1], suite, "faint"))
    xs = [x(float(rule.depth or 1)) for rule in rules]
    rates = [rule.summary.rate for rule in rules]
    drawing.band(xs, [y(rate.low) for rate in rates], [y(rate.high) for rate in rates], f"band {css}")
    points = [_success(drawing, series, rule, x, y, css) for rule in rules]
    drawing.path(points, f"line {css}")
    written = -math.inf
    for px, rate, rule in zip(xs, rates, rules, strict=True):
        last = rule is rules[-1] and len(rules) > 1
        if not several and px - written >= 46 and (last or xs[-1] - px >= 92 or len(rules) == 1):
            written = px
            place = y(rate.value) + (-12 if rate.value < 0.12 else 20)
            drawing.text((px - 8 if last else px + 8, place), percent(rate), "value", "end" if last else "start")
    name = _ladder_name(series, rules, several=several)
    labels.append(_Label(points[-1], name if several or len(suites) == 1 else f"{name}, all suites", css))
    return labels


def _success(drawing: Drawing, series: Series, rule: RuleGroup, x: Scale, y: Scale, css: str) -> Point:
    """Draw a fixed depth's success with its interval, and return where."""
    at, rate = x(float(rule.depth or 1)), rule.summary.rate
    drawing.line((at, y(rate.low)), (at, y(rate.high)), f"whisker {css}")
    drawing.dot((at, y(rate.value)), 4.5, f"mark {css}", f"{series.label}, {rule.name}: {full(rate)}")
    return at, y(rate.value)


def _ladder_name(series: Series, rules: Sequence[RuleGroup], *, several: bool) -> str:
    """Return how a ladder is called: as the name of its rules goes on after their depth."""
    further = rules[0].name.removeprefix(f"depth {rules[0].depth}") if len(series.ladders) > 1 else ""
    return (series.label if several else "fixed depth") + further


def _suite_points(rules: Sequence[RuleGroup], suite: str, x: Scale, y: Scale) -> list[Point]:
    points = []
    for rule in rules:
        rate = summarise_group(record for record in rule.records if record.suite == suite).rate
        if rate.n:
            points.append((x(float(rule.depth or 1)), y(rate.value)))
    return points


def _adaptive_mark(
    drawing: Drawing, rule: RuleGroup, x: Scale, y: Scale, css: str, index: int, series: Series | None
) -> _Label:
    """Draw a diamond on a stem that runs to the far side of the figure, and return the label for the stem."""
    rate, mean = rule.summary.rate, rule.summary.mean_iterations or 1.0
    name = f"{series.label}, {rule.name}" if series else rule.name
    upwards = rate.value < 0.4
    drawing.line((x(mean), y(rate.value)), (x(mean), y(1.0 if upwards else 0.0)), f"stem {css}")
    drawing.line((x(mean), y(rate.low)), (x(mean), y(rate.high)), f"whisker {css}")
    drawing.diamond((x(mean), y(rate.value)), 7.5, f"mark {css}", f"{name}: {full(rate)}, {mean:.2f} iterations")
    level = 0.94 - 0.075 * index if upwards else 0.05 + 0.075 * index
    return _Label((x(mean), y(level)), f"{name}: {percent(rate)} with {mean:.1f} steps", css)


def _labels_on_stems(drawing: Drawing, labels: Sequence[_Label]) -> None:
    """Write each to the right of its stem, else to the left, else up to the figure's end, across the stems."""
    for label in labels:
        (x, y), needed = label.at, 9 + _LETTER * len(label.text)
        if x + needed <= drawing.width:
            drawing.text((x + 9, y), label.text, f"label {label.css}")
        else:
            drawing.text((x - 9 if x >= needed + _LEFT else drawing.width, y), label.text, f"label {label.css}", "end")


def _labels_right(drawing: Drawing, labels: Sequence[_Label], x: float, limits: tuple[float, float]) -> None:
    places = spread([label.at[1] for label in labels], 17, *limits)
    for label, place in zip(labels, places, strict=True):
        drawing.path([(label.at[0] + 9, label.at[1]), (x - 12, place), (x - 4, place)], f"leader {label.css}")
        drawing.text((x, place + 4), label.text, f"label {label.css}")


def _legend(labels: Sequence[_Label]) -> str:
    items = "".join(f'<li class="{label.css}"><span>{escape(label.text)}</span></li>' for label in labels)
    return f'<ul class="legend">{items}</ul>'


def iterations_per_task(rules: Sequence[RuleGroup], width: int) -> str:
    """Draw, per task, the mean iterations of adaptive rules and the range of the middle 80 % of decisions."""
    narrow = width < NARROW_BELOW
    tasks: dict[tuple[str, int], list[EpisodeRecord]] = {}
    for record in (record for rule in rules for record in rule.played):
        tasks.setdefault((record.suite, record.task_id), []).append(record)
    rows = sorted(tasks, key=lambda task: _mean_iterations(tasks[task]))
    names = _task_names({task: task_words(members) for task, members in tasks.items()}, 44 if narrow else 46)
    longest = max(len(name) for name in names.values())
    left, row = (12, 44) if narrow else (110 + 6.6 * longest, 22 if len(rules) < 3 else 26)
    height = 34 + row * len(rows) + 48
    drawing = Drawing(width, height, "Iterations per decision by task")
    top = max(np.percentile([c for r in members for c in r.iterations], 90) for members in tasks.values())
    x = Scale((0.0, float(top) * 1.08), (left, width - 74))
    ticks = [(v, f"{v:g}") for v in nice_ticks(0, x.domain[1], 5 if narrow else 7)]
    for value, _ in ticks:
        drawing.line((x(value), 24), (x(value), height - 46), "grid")
    drawing.text((width, 16), "solved", "title", "end")
    for number, task in enumerate(rows):
        y = 34 + row * (number + 0.5) + (9 if narrow else 0)
        suite = f"{task[0].removeprefix('libero_')} {task[1]}"
        if narrow:
            drawing.text((left, y - 13), f"{suite} · {names[task]}", "tick")
        else:
            drawing.text((0, y + 4), suite, "title")
            drawing.text((88, y + 4), names[task], "tick")
        rate = summarise_group(tasks[task]).rate
        drawing.text((width, y + 4), f"{rate.successes}/{rate.n}", "tick", "end")
        for index, rule in enumerate(rules):
            mine = [r for r in rule.played if (r.suite, r.task_id) == task]
            _range_mark(drawing, mine, x, y + (index - (len(rules) - 1) / 2) * 6, f"a{index % 4}")
    axis_x(drawing, x, ticks, height - 46, "iterations per decision")
    return str(drawing) + _rule_legend(rules)


def _mean_iterations(records: Iterable[EpisodeRecord]) -> float:
    return statistics.fmean(count for record in records for count in record.iterations)


def _task_names(tasks: Mapping[tuple[str, int], str], limit: int) -> dict[tuple[str, int], str]:
    """Return what tells a task from the others of its suite: its words without those common to all."""
    names = {}
    for suite in dict.fromkeys(suite for suite, _ in tasks):
        members = [task for task in tasks if task[0] == suite]
        sentences = [tasks[task].split() for task in members]
        shortest = min(len(sentence) for sentence in sentences)
        alike = [len({tuple(sentence[:n]) for sentence in sentences}) == 1 for n in range(1, shortest)]
        start = sum(alike) if len(members) > 1 else 0
        alike = [len({tuple(sentence[-n:]) for sentence in sentences}) == 1 for n in range(1, shortest - start)]
        end = sum(alike) if len(members) > 1 else 0
        for task, sentence in zip(members, sentences, strict=True):
            name = " ".join(sentence[start : len(sentence) - end])
            names[task] = name if len(name) <= limit else name[: limit - 1] + "…"
    return names


def _range_mark(drawing: Drawing, records: Sequence[EpisodeRecord], x: Scale, y: float, css: str) -> None:
    counts = [count for record in records for count in record.iterations]
    if not counts:
        return
    low, high = (float(v) for v in np.percentile(counts, [10, 90]))
    mean = statistics.fmean(counts)
    drawing.line((x(low), y), (x(high), y), f"range {css}")
    drawing.dot((x(mean), y), 4.5, f"mark {css}", f"mean {mean:.2f}, middle 80 %: {low:g} to {high:g}")


def iterations_over_episode(rules: Sequence[RuleGroup], width: int) -> str:
    """Draw the mean iterations, and the range of the middle half, against the position in the episode."""
    height = 250
    drawing = Drawing(width, height, "Iterations over the course of an episode")
    curves = [_over_episode(rule) for rule in rules]
    top = max(high for curve in curves for _, _, _, high in curve)
    x = Scale((0.0, 1.0), (44, width - 16))
    y = Scale((0.0, top * 1.1), (height - 52, 30))
    axis_y(drawing, y, [(v, f"{v:g}") for v in nice_ticks(0, y.domain[1], 5)], (44, width - 16), "iterations")
    axis_x(drawing, x, [(0, "start"), (0.5, "half-way"), (1, "end")], height - 52, "position in the episode")
    for index, curve in enumerate(curves):
        xs = [x(position) for position, *_ in curve]
        drawing.band(xs, [y(low) for _, _, low, _ in curve], [y(high) for *_, high in curve], f"band a{index % 4}")
    for index, curve in enumerate(curves):
        drawing.path([(x(position), y(mean)) for position, mean, _, _ in curve], f"line a{index % 4}")
    return str(drawing) + _rule_legend(rules)


def _over_episode(rule: RuleGroup) -> list[tuple[float, float, float, float]]:
    bins: list[list[int]] = [[] for _ in range(POSITION_BINS)]
    for record in rule.played:
        n = len(record.iterations)
        for index, count in enumerate(record.iterations):
            bins[min(POSITION_BINS - 1, int((index + 0.5) / n * POSITION_BINS))].append(count)
    return [
        ((k + 0.5) / POSITION_BINS, statistics.fmean(b), float(np.percentile(b, 25)), float(np.percentile(b, 75)))
        for k, b in enumerate(bins)
        if b
    ]


def iterations_by_place(rules: Sequence[RuleGroup], width: int) -> str:
    """Draw the iterations of the tasks solved at each place of a chain, with 95 % intervals."""
    height = 250
    drawing = Drawing(width, height, "Iterations per decision by place in the chain")
    curves = [by_place(rule) for rule in rules]
    last = max(place for curve in curves for place, _ in curve)
    top = max(mean.high for curve in curves for _, mean in curve)
    x = Scale((0.6, last + 0.4), (44, width - 16))
    y = Scale((0.0, top * 1.1), (height - 52, 30))
    axis_y(drawing, y, [(v, f"{v:g}") for v in nice_ticks(0, y.domain[1], 5)], (44, width - 16), "iterations")
    axis_x(drawing, x, [(float(k), str(k)) for k in range(1, last + 1)], height - 52, "place in the chain")
    for index, (rule, curve) in enumerate(zip(rules, curves, strict=True)):
        css, aside = f"a{index % 4}", 7 * (index - (len(rules) - 1) / 2)
        drawing.path([(x(place) + aside, y(mean.value)) for place, mean in curve], f"line {css}")
        for place, mean in curve:
            at = x(place) + aside
            drawing.line((at, y(mean.low)), (at, y(mean.high)), f"whisker {css}")
            tip = f"{rule.name}, place {place}: {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f})"
            drawing.dot((at, y(mean.value)), 4.5, f"mark {css}", tip)
    return str(drawing) + _rule_legend(rules)


def histogram(rules: Sequence[RuleGroup], width: int) -> str:
    """Draw how many decisions took how many iterations."""
    height = 250
    drawing = Drawing(width, height, "Distribution of the iterations per decision")
    shares = [_shares(rule) for rule in rules]
    last = max(max(share) for share in shares)
    x = Scale((0.5, last + 0.5), (44, width - 16))
    y = Scale((0.0, max(max(share.values()) for share in shares) * 1.1), (height - 52, 30))
    y_ticks = [(v, f"{v * 100:g} %") for v in nice_ticks(0, y.domain[1], 4)]
    axis_y(drawing, y, y_ticks, (44, width - 16), "decisions")
    labelled = [v for v in nice_ticks(1, last, 8) if v == int(v)]
    axis_x(drawing, x, [(v, f"{v:g}") for v in labelled], height - 52, "iterations")
    slot = (x(2) - x(1)) * 0.84 / len(rules)
    for index, (rule, share) in enumerate(zip(rules, shares, strict=True)):
        for count, part in share.items():
            left = x(count) - slot * len(rules) / 2 + slot * index
            tip = f"{rule.name}: {part:.1%} of decisions took {count} iterations"
            drawing.rect(left, y(part), slot, y(0) - y(part), f"bar a{index % 4}", tip)
    return str(drawing) + _rule_legend(rules)


def _shares(rule: RuleGroup) -> dict[int, float]:
    counts = [count for record in rule.played for count in record.iterations]
    return {value: counts.count(value) / len(counts) for value in sorted(set(counts))}


def convergence(rule: RuleGroup, width: int) -> str:
    """Draw the rule's metric against the iteration: median, middle 80 % and a few single decisions; log scale."""
    assert rule.stop is not None
    traces = [trace for record in rule.played for trace in record.convergence if trace]
    every, limit = rule.stop.check_every, rule.stop.limit or 0.0
    title = f"Convergence of {rule.name}"
    return decay(traces, width, title, f"{rule.stop.name} between checks", first=2, every=every, limit=limit)


def decay(
    traces: Sequence[Sequence[float]],
    width: int,
    title: str,
    label: str,
    *,
    first: int = 1,
    every: int = 1,
    limit: float = 0.0,
) -> str:
    """Draw what falls with the iterations: median, middle 80 % and a few single decisions, on a logarithmic scale.

    Args:
        traces: the values of each decision, after every `every`-th iteration; the first belongs to number `first` of
            these.
        width: of the drawing, pixels.
        title: of the drawing.
        label: of the vertical axis.
        first: number of the first value.
        every: iterations between two values.
        limit: where a rule stops; 0 draws none.
    """
    height = 300
    drawing = Drawing(width, height, title)
    columns = _columns(traces)
    positive = [value for column in columns for value in np.percentile(column, [10, 90]) if value > 0]
    bounds = [*positive, limit] if limit > 0 else positive or [float(np.finfo(np.float32).tiny)]
    low, high = 10 ** np.floor(np.log10(min(bounds))), 10 ** np.ceil(np.log10(max(bounds)))
    at = [float(every * (k + first)) for k in range(max(len(columns), 2))]
    x = Scale((at[0], at[-1]), (56, width - 16))
    y = Scale((float(low), float(max(high, low * 10))), (height - 52, 34), log=True)
    plain = y.domain[0] >= 1e-4
    ticks = [(v, f"{v:g}" if plain else _power(v)) for v in decades(*y.domain)]
    axis_y(drawing, y, ticks[:: 1 + len(ticks) // 8], (48, width - 16), label)
    x_ticks = [v for v in nice_ticks(*x.domain, 8) if v == int(v)]
    axis_x(drawing, x, [(v, f"{v:g}") for v in x_ticks], height - 52, "iteration")
    step = max(1, len(traces) // 40)
    for trace in traces[::step][:40]:
        drawing.path([(x(at[k]), y(max(v, low))) for k, v in enumerate(trace[: len(columns)])], "line trace")
    xs = [x(position) for position in at[: len(columns)]]
    quantiles = [[y(max(float(v), low)) for v in np.percentile(column, [10, 50, 90])] for column in columns]
    drawing.band(xs, [q[0] for q in quantiles], [q[2] for q in quantiles], "band a0")
    drawing.path([(px, q[1]) for px, q in zip(xs, quantiles, strict=True)], "line a0")
    if limit > 0:
        drawing.line((48, y(limit)), (width - 16, y(limit)), "threshold")
        drawing.text((58, y(limit) + 16), f"stops below {limit:g}", "label ink")
    return str(drawing)


def _columns(traces: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the values at each check while enough decisions were still thinking."""
    enough = min(MIN_DECISIONS, max(1, len(traces) // 10))
    columns = [[trace[k] for trace in traces if len(trace) > k] for k in range(max(len(trace) for trace in traces))]
    return [column for column in columns if len(column) >= enough]


def _power(value: float) -> str:
    return "10" + f"{round(np.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def latency(rules: Sequence[RuleGroup], width: int) -> str:
    """Draw the median and 95th percentile of the time of a decision, per rule."""
    rules = [rule for rule in rules if "decide" in rule.summary.latency_ms]
    narrow = width < NARROW_BELOW
    left, row = (12, 40) if narrow else (room(rules, width), 26)
    height = 24 + row * len(rules) + 48
    drawing = Drawing(width, height, "Time per decision by rule")
    top = max(rule.summary.latency_ms["decide"][1] for rule in rules)
    x = Scale((0.0, top * 1.02), (left, width - 100))
    ticks = [(v, f"{v:g}") for v in nice_ticks(0, x.domain[1], 4 if narrow else 6)]
    for value, _ in ticks:
        drawing.line((x(value), 14), (x(value), height - 46), "grid")
    for number, rule in enumerate(rules):
        y = 20 + row * (number + 0.5) + (7 if narrow else 0)
        p50, p95 = rule.summary.latency_ms["decide"]
        css = "a0" if rule.adaptive else "c0"
        drawing.line((x(p50), y), (x(p95), y), f"range {css}")
        drawing.line((x(p95), y - 5), (x(p95), y + 5), f"whisker {css}")
        drawing.dot((x(p50), y), 5, f"mark {css}", f"{rule.name}: median {p50:.1f} ms, 95th percentile {p95:.1f} ms")
        drawing.text((x(p95) + 10, y + 4), f"{p50:.1f} / {p95:.1f}", "value")
        if narrow:
            drawing.text((left, y - 11), rule.name, "tick")
        else:
            drawing.text((left - 14, y + 4), rule.name, "tick", "end")
    axis_x(drawing, x, ticks, height - 46, "ms per decision: median, 95th percentile")
    return str(drawing)


def room(rules: Sequence[RuleGroup], width: int) -> int:
    """Return the pixels that the names of rules need beside a figure: half of it at most."""
    return min(max(210, 36 + round(_LETTER * max(len(rule.name) for rule in rules))), width // 2)


def _rule_legend(rules: Sequence[RuleGroup]) -> str:
    if len(rules) < 2:
        return ""
    return _legend([_Label((0, 0), rule.name, f"a{index % 4}") for index, rule in enumerate(rules)])


def _thin(ticks: Sequence[tuple[float, str]], scale: Scale) -> list[tuple[float, str]]:
    kept: list[tuple[float, str]] = []
    for value, label in ticks:
        if not kept or scale(value) - scale(kept[-1][0]) >= 18:
            kept.append((value, label))
    return kept
