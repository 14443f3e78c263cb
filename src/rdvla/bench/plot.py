"""The result as figures: time against iterations, speed-ups, memory against iterations. One HTML file, no scripts."""

import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path

from rdvla.bench.measure import OURS, PUBLISHED, Row
from rdvla.bench.suite import BenchResult
from rdvla.files import write_atomically
from rdvla.report.svg import Drawing, Scale, axis_x, axis_y, nice_ticks, spread
from rdvla.tables import number

WIDTH, HEIGHT = 900, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 40, 56
BAR, NAMES = 15, 330
_DEPTH = re.compile(r"r = (\d+)$")
_COLOURS = {PUBLISHED: "c1", OURS: "c0"}


def write_plot(result: BenchResult, path: Path) -> None:
    """Write the figures.

    Raises:
        StorageError: the file cannot be written.
    """
    write_atomically(path, page(result))


def page(result: BenchResult) -> str:
    """Return the HTML page."""
    style = (resources.files("rdvla.report") / "page.css").read_text(encoding="utf-8")
    figures = []
    for section, group in groupby(result.rows, key=lambda row: row.section):
        rows = [row for row in group if _depth(row)]
        if section.startswith("head") and len(rows) > 1:
            figures.append((f"{section}: milliseconds against iterations", iterations(section, rows)))
    if any(len(row.values) > 1 for row in result.rows):
        figures.insert(0, ("How many times faster than the published computation", speed_ups(result.rows)))
    memory = [row for row in result.rows if row.unit == "MB"]
    if memory:
        figures.append(("Memory against iterations", memory_figure(memory)))
    body = "".join(f"<section><h2>{escape(title)}</h2><figure>{svg}</figure></section>" for title, svg in figures)
    settings = ", ".join(f"{name} {value}" for name, value in result.description.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rdvla bench</title>'
        f"<style>{style}</style></head><body><header><h1>Ours against the published computation</h1>"
        f'<p class="lede">Medians of {result.repeats} interleaved repetitions. {escape(settings)}.</p></header>'
        f"{body}</body></html>\n"
    )


def iterations(section: str, rows: Sequence[Row]) -> str:
    """Draw the time of fixed depths, one line per variant, and the floor as a dashed line."""
    drawing = Drawing(WIDTH, HEIGHT, f"{section}: time against iterations")
    depths = [_depth(row) for row in rows]
    most = max(max(row.median(name) for name in row.values) for row in rows)
    x = Scale((0, max(depths)), (LEFT, WIDTH - RIGHT))
    y = Scale((0, most), (HEIGHT - BOTTOM, TOP))
    axis_y(drawing, y, [(tick, f"{tick:g}") for tick in nice_ticks(0, most, 5)], (LEFT, WIDTH - RIGHT), "ms")
    axis_x(drawing, x, [(d, str(d)) for d in depths], HEIGHT - BOTTOM, "iterations")
    lines = {name: [row.median(name) for row in rows] for name in rows[-1].values}
    ends = {name: values[-1] for name, values in lines.items()}
    floors = [row.floor for row in rows if row.floor is not None]
    if len(floors) == len(rows):
        drawing.path([(x(d), y(value)) for d, value in zip(depths, floors, strict=True)], "line thin")
        ends["floor"] = floors[-1]
    for index, (name, values) in enumerate(lines.items()):
        points = [(x(depth), y(value)) for depth, value in zip(depths, values, strict=True)]
        drawing.path(points, f"line {_colour(name, index)}")
        for point, depth, value in zip(points, depths, values, strict=True):
            drawing.dot(point, 4, f"mark {_colour(name, index)}", f"{name}, r = {depth}: {number(value)} ms")
    places = spread([y(value) for value in ends.values()], 18, TOP, HEIGHT - BOTTOM)
    for index, ((name, value), place) in enumerate(zip(ends.items(), places, strict=True)):
        css = "label faint" if name == "floor" else f"label {_colour(name, index)}"
        drawing.text((WIDTH - RIGHT + 12, place + 4), f"{name} {number(value)}", css)
    return str(drawing)


def speed_ups(rows: Sequence[Row]) -> str:
    """Draw one bar per case and variant; the line at 1 is the published computation."""
    bars = [(row, name, row.ratio(name)) for row in rows for name in row.values if name != PUBLISHED]
    shown = [(row, name, ratio) for row, name, ratio in bars if ratio is not None]
    sections = len({row.section for row, _, _ in shown})
    height = TOP + sections * 26 + len(shown) * (BAR + 5) + BOTTOM
    drawing = Drawing(WIDTH, height, "Speed-up over the published computation")
    most = max(ratio for _, _, ratio in shown)
    x = Scale((0, max(most, 1.0)), (NAMES, WIDTH - 60))
    axis_x(drawing, x, [(t, f"{t:g}x") for t in nice_ticks(0, x.domain[1], 6)], height - BOTTOM, "times faster")
    drawing.line((x(1.0), TOP), (x(1.0), height - BOTTOM), "threshold")
    top = float(TOP)
    for section, group in groupby(shown, key=lambda entry: entry[0].section):
        drawing.text((8, top + 12), section, "label ink")
        top += 26
        for row, name, ratio in group:
            index = list(row.values).index(name)
            tip = f"{name}: {number(row.median(name))} {row.unit}, {ratio:.2f}x"
            drawing.text((NAMES - 10, top + 12), row.name + ("" if name == OURS else f", {name}"), "tick", "end")
            drawing.rect(NAMES, top, x(ratio) - NAMES, BAR, f"bar {_colour(name, index)}", tip)
            drawing.text((x(ratio) + 6, top + 12), f"{ratio:.2f}x", "value")
            top += BAR + 5
    return str(drawing)


def memory_figure(rows: Sequence[Row]) -> str:
    """Draw the peak of each kind of pass relative to its greatest, against the depth (both axes say it: flat)."""
    drawing = Drawing(WIDTH, HEIGHT, "Peak memory against iterations")
    series = {
        (section, name): list(group)
        for (section, name), group in groupby(rows, key=lambda row: (row.section, row.name.rpartition(",")[0]))
    }
    depths = sorted({_depth(row) for row in rows})
    x = Scale((min(depths), max(depths)), (LEFT, WIDTH - 330), log=True)
    y = Scale((0, 1), (HEIGHT - BOTTOM, TOP))
    axis_y(drawing, y, [(t, f"{t:g}") for t in (0, 0.5, 1)], (LEFT, WIDTH - 330), "share of the largest")
    axis_x(drawing, x, [(d, str(d)) for d in depths], HEIGHT - BOTTOM, "iterations")
    places = spread([TOP + 4.0] * len(series), 20, TOP, HEIGHT - BOTTOM)
    for index, ((section, name), group) in enumerate(series.items()):
        largest = max(row.median(OURS) for row in group)
        points = [(x(_depth(row)), y(row.median(OURS) / largest)) for row in group]
        drawing.path(points, f"line c{index % 6}")
        for point, row in zip(points, group, strict=True):
            drawing.dot(point, 4, f"mark c{index % 6}", f"{row.name}: {number(row.median(OURS))} MB")
        text = f"{section.removeprefix('memory, ')}, {name}: {number(largest)} MB"
        drawing.text((WIDTH - 318, places[index]), text, f"label c{index % 6}")
    return str(drawing)


def _depth(row: Row) -> int:
    found = _DEPTH.search(row.name)
    return int(found[1]) if found else 0


def _colour(name: str, index: int) -> str:
    return _COLOURS.get(name, f"c{2 + index % 4}")
