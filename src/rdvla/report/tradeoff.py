"""What less thinking costs: success against the time of a decision, for rules that one evaluation played in turns."""

from collections.abc import Sequence

from rdvla.report.figures import NARROW_BELOW, room
from rdvla.report.findings import full
from rdvla.report.load import RuleGroup, Series
from rdvla.report.svg import Drawing, Scale, axis_x, axis_y, nice_ticks, spread

TIME = "decide"


def compared_in_time(series: Series) -> list[RuleGroup]:
    """Return the rules whose times may be compared, quickest first: several of the same evaluations, else none.

    Machines drift, so times of evaluations that were played one after the other say nothing about each other.
    """
    rules = [rule for rule in series.rules if TIME in rule.summary.latency_ms]
    together = len({frozenset(rule.evaluations) for rule in rules}) == 1
    return sorted(rules, key=typical_time) if together and len(rules) > 1 else []


def typical_time(rule: RuleGroup) -> float:
    """Return the milliseconds of a decision, the median: a machine that pauses once does not move it."""
    return rule.summary.latency_ms[TIME][0]


def success_against_time(rules: Sequence[RuleGroup], width: int) -> str:
    """Draw the success rate of every rule, with its interval, over the median time of its decisions."""
    height, right = 320, 24 if width < NARROW_BELOW else room(rules, width)
    drawing = Drawing(width, height, "Success rate against the time of a decision")
    times = [typical_time(rule) for rule in rules]
    lowest = min(rule.summary.rate.low for rule in rules)
    x = Scale((0.9 * min(times), 1.05 * max(times)), (52, width - right))
    y = Scale((max(0.0, lowest - 0.05), 1.0), (height - 52, 24))
    y_ticks = [(value, f"{100 * value:g} %") for value in nice_ticks(*y.domain, 5)]
    axis_y(drawing, y, y_ticks, (44, width - right + 8), "episodes solved")
    axis_x(drawing, x, [(v, f"{v:g}") for v in nice_ticks(*x.domain, 6)], height - 52, "ms per decision, median")
    points = [(x(time), y(rule.summary.rate.value)) for rule, time in zip(rules, times, strict=True)]
    for rule, time, (px, py) in zip(rules, times, points, strict=True):
        css = "a0" if rule.adaptive else "c0"
        drawing.line((px, y(rule.summary.rate.low)), (px, y(rule.summary.rate.high)), f"whisker {css}")
        drawing.dot((px, py), 5, f"mark {css}", f"{rule.name}: {full(rule.summary.rate)}, {time:.1f} ms")
    if width >= NARROW_BELOW:
        places = spread([py for _, py in points], 17, 30, height - 56)
        for rule, (px, py), place in zip(rules, points, places, strict=True):
            css, end = "a0" if rule.adaptive else "c0", width - right + 16
            drawing.path([(px + 9, py), (end - 12, place), (end - 4, place)], f"leader {css}")
            drawing.text((end, place + 4), rule.name, f"label {css}")
    return str(drawing)
