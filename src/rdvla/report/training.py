"""One HTML page about a training run, from the files in its folder."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdvla.errors import RecordError
from rdvla.files import complete_lines, write_atomically
from rdvla.report.svg import HALF, NARROW, WIDE, Drawing, Point, Scale, axis_x, axis_y, nice_ticks, spread
from rdvla.report.template import render_template

METRICS, CONFIG = "metrics.jsonl", "config.json"
VALIDATION, _SUCCESS, _IN_A_ROW = "validation_l1/depth_", "success/", "in_a_row/"
_KEYFRAME = "validation_keyframe_l1"
_SMOOTH = 40
"""The drawn mean goes over so many logged losses at most."""


@dataclass(frozen=True)
class TrainingRun:
    """A run's numbers.

    Attributes:
        folder: where it is.
        config: its settings.
        numbers: quantity -> (step, value), ascending.
    """

    folder: Path
    config: Mapping[str, Any]
    numbers: Mapping[str, Sequence[Point]]

    def starting_with(self, prefix: str) -> dict[str, Sequence[Point]]:
        """Return the quantities with a prefix, by what follows it."""
        return {name.removeprefix(prefix): at for name, at in self.numbers.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Curve:
    """A line of a figure: a name, its points, and CSS classes."""

    name: str
    points: Sequence[Point]
    css: str


def is_training(folder: Path) -> bool:
    """Say whether `folder` was written by 'rdvla train': it has a log of steps."""
    return (folder / METRICS).is_file()


def load_training(folder: Path) -> TrainingRun:
    """Read a run.

    Raises:
        RecordError: nothing is logged yet, or a file is damaged.
    """
    numbers: dict[str, list[Point]] = {}
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for line in complete_lines(folder / METRICS):
            values = json.loads(line)
            step = float(values.pop("step"))
            if not math.isfinite(step):
                raise ValueError(f"a step is {step}")
            for name, value in values.items():
                if value is not None and math.isfinite(value):  # null, or NaN as earlier versions wrote it
                    numbers.setdefault(name, []).append((step, float(value)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"the records in '{folder}' are damaged ({error}); is the run still writing?") from None
    if "loss" not in numbers:
        raise RecordError(f"'{folder}' has logged no training step yet.")
    return TrainingRun(folder, config, numbers)


def write_training_report(folder: Path, output: Path) -> None:
    """Write the report of the run in `folder` as one HTML file.

    Raises:
        RecordError: nothing is logged yet, or a file is damaged.
        MissingExtraError: Jinja2 is not installed.
        StorageError: `output` cannot be written; nothing is left half-written.
    """
    run = load_training(folder)
    page = render_template(
        "training.html",
        run=run.folder.name,
        headline=_headline(run),
        lede=_lede(run),
        figures=_figures(run),
        settings=json.dumps(run.config, indent=2),
    )
    write_atomically(output, page)


def _headline(run: TrainingRun) -> str:
    steps = int(run.numbers["loss"][-1][0])
    return f"{steps:,} steps, loss {smoothed(run.numbers['loss'])[-1][1]:.4f}"


def _lede(run: TrainingRun) -> str:
    validation = run.starting_with(VALIDATION)
    keyframe = run.config.get("keyframe") or {}
    what = "the normalised state at the next keyframe" if keyframe.get("alone") else "normalised actions"
    parts = [f"Loss: mean absolute error of {what}."]
    if validation:
        depth, points = min(validation.items(), key=lambda item: item[1][-1][1])
        parts.append(f"On held-out episodes it ends at {points[-1][1]:.4f} with {depth} iterations, its best depth.")
    success = run.starting_with(_SUCCESS).get("all")
    if success:
        parts.append(f"The last evaluation solved {success[-1][1]:.0%} of its episodes.")
    for suite, points in run.starting_with(_IN_A_ROW).items():
        parts.append(f"It solved {points[-1][1]:.2f} tasks in a row in {suite}.")
    speed = [value for _, value in run.numbers.get("samples_per_second", ())]
    if speed:
        parts.append(f"Median throughput: {sorted(speed)[len(speed) // 2]:.1f} samples per second.")
    return " ".join(parts)


def _figures(run: TrainingRun) -> list[dict[str, Any]]:
    """Return the page's figures: heading, caption, wide and narrow drawing; small ones share a row."""
    numbers, validation = run.numbers, run.starting_with(VALIDATION)
    loss = [Curve("", numbers["loss"], "line trace"), Curve("training", smoothed(numbers["loss"]), "line c0")]
    found = [
        _figure("Loss", "Every logged step, and their running mean.", lambda w: curves(loss, w, "training loss")),
    ]
    if validation:
        lines = [Curve(f"depth {name}", at, f"line c{n % 6}") for n, (name, at) in enumerate(validation.items())]
        text = "Held-out episodes, averaged weights, by the number of iterations."
        found.append(_figure("Validation", text, lambda w: curves(lines, w, "validation loss")))
        last = [(float(name), at[-1][1]) for name, at in validation.items()]
        ends = [Curve("", sorted(last), "line c1")]
        text = "The last validation, by the number of iterations (logarithmic). A flat end means that it has converged."
        found.append(_figure("Depth", text, lambda w: curves(ends, w, "validation loss", "iterations", log=True)))
    if _KEYFRAME in numbers:
        places = [Curve("", numbers[_KEYFRAME], "line c1")]
        text = "Held-out episodes, averaged weights: how far the keyframe's state, read from the latent tokens, is off."
        found.append(_figure("Keyframe", text, lambda w: curves(places, w, "mean absolute error", low=0.0)))
    success = run.starting_with(_SUCCESS)
    if success:
        rates = [
            Curve(name, [(step, 100 * rate) for step, rate in at], f"line c{n % 6}")
            for n, (name, at) in enumerate(success.items())
        ]
        text = "Share of episodes solved by the policy of that step, in percent."
        found.append(_figure("Success", text, lambda w: curves(rates, w, "% solved", low=0.0)))
    if chains := run.starting_with(_IN_A_ROW):
        counts = [Curve(name, at, f"line c{n % 6}") for n, (name, at) in enumerate(chains.items())]
        text = "Tasks of a chain that the policy of that step solves in a row, on average."
        found.append(_figure("In a row", text, lambda w: curves(counts, w, "tasks in a row", low=0.0)))
    for name, title in (
        ("learning_rate", "learning rate"),
        ("grad_norm", "gradient norm"),
        ("samples_per_second", "samples/s"),
    ):
        if name in numbers:
            one = [Curve("", numbers[name], "line c2")]
            found.append(_figure("", "", lambda w, o=one, t=title: curves(o, w, t), small=True))  # type: ignore[misc]
    return found


def _figure(heading: str, caption: str, draw: Callable[[int], str], *, small: bool = False) -> dict[str, Any]:
    wide = draw(HALF if small else WIDE)
    return {"heading": heading, "caption": caption, "wide": wide, "narrow": draw(NARROW), "small": small}


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Return the running mean over a tenth of the points, at most `_SMOOTH` of them."""
    span = max(1, min(_SMOOTH, len(points) // 10))
    means = []
    for index, (step, _) in enumerate(points):
        window = [value for _, value in points[max(0, index + 1 - span) : index + 1]]
        means.append((step, sum(window) / len(window)))
    return means


def curves(
    lines: Sequence[Curve],
    width: int,
    title: str,
    x_title: str = "step",
    *,
    log: bool = False,
    low: float | None = None,
) -> str:
    """Draw lines over a common axis, each labelled at its end.

    Args:
        lines: at least one, with at least one point.
        width: in pixels.
        title: of the vertical axis.
        x_title: of the horizontal axis.
        log: space the horizontal axis logarithmically.
        low: the lower end of the vertical axis; None takes the smallest value.
    """
    narrow = width < HALF
    height = 230 if width < WIDE else 340
    named = [line for line in lines if line.name]
    right = 90 if named and not narrow else 16
    drawing = Drawing(width, height, title)
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    bottom = min(ys) if low is None else low
    x = Scale((min(xs), max(xs)), (60, width - right), log=log)
    y = Scale((bottom, max(*ys, bottom + 1e-12)), (height - 52, 30))
    axis_y(drawing, y, [(v, f"{v:.4g}") for v in nice_ticks(*y.domain, 5)], x.span, title)
    ticks = sorted(set(xs)) if log else nice_ticks(*x.domain, 4 if narrow else 8)
    axis_x(drawing, x, [(v, f"{v:g}") for v in ticks], height - 52, x_title)
    for line in lines:
        drawing.path([(x(px), y(py)) for px, py in line.points], line.css)
        if len(line.points) < 40 and "trace" not in line.css:
            for px, py in line.points:
                drawing.dot((x(px), y(py)), 3, f"mark {line.css.removeprefix('line ')}", f"{px:g}: {py:.4g}")
    if named and not narrow:
        places = spread([y(line.points[-1][1]) for line in named], 16, 34, height - 56)
        for line, place in zip(named, places, strict=True):
            drawing.text((width - right + 8, place + 4), line.name, f"label {line.css.removeprefix('line ')}")
    return str(drawing)
