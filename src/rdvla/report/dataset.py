"""One HTML page about a dataset, from the numbers in `rdvla.data.summary`."""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdvla.data.summary import DatasetSummary, VectorSummary
from rdvla.files import write_atomically
from rdvla.report.svg import NARROW, WIDE, Drawing, Scale, axis_x, axis_y, nice_ticks
from rdvla.report.template import render_template
from rdvla.tables import count

CELL = 205
_CELL_HEIGHT = 118


def write_dataset_page(summary: DatasetSummary, output: Path) -> None:
    """Write the page about `summary`.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        StorageError: `output` cannot be written; nothing is left half-written.
    """
    page = render_template(
        "dataset.html",
        summary=summary,
        tasks=[(task, task.frames / max(other.frames for other in summary.tasks)) for task in summary.tasks],
        headline=_headline(summary),
        lede=_lede(summary),
        lengths={"wide": lengths(summary.lengths, WIDE), "narrow": lengths(summary.lengths, NARROW)},
        vectors=[
            (vector, [histogram(vector, index) for index in range(vector.stats.size)]) for vector in _shown(summary)
        ],
        samples=[
            (sample, [(key, base64.b64encode(image).decode()) for key, image in sample.images.items()])
            for sample in summary.samples
        ],
    )
    write_atomically(output, page)


def _shown(summary: DatasetSummary) -> Sequence[VectorSummary]:
    return [vector for vector in summary.vectors if np.any(vector.stats.min != vector.stats.max)]


def _headline(summary: DatasetSummary) -> str:
    parts = (
        count(len(summary.lengths), "episode"),
        count(len(summary.tasks), "task"),
        count(int(summary.lengths.sum()), "frame"),
    )
    return f"{parts[0]} of {parts[1]}, {parts[2]}"


def _lede(summary: DatasetSummary) -> str:
    info = summary.info
    cameras = [f"{key} ({info.features[key].image_size[0]}x{info.features[key].image_size[1]})" for key in info.cameras]
    robot = f"Robot {info.robot_type}, " if info.robot_type else ""
    seconds = summary.lengths.sum() / info.fps
    duration = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    return f"{robot}{info.fps:g} frames per second, {duration} in all. Cameras: {', '.join(cameras) or 'none'}."


def lengths(values: NDArray[np.int64], width: int) -> str:
    """Draw how many episodes have which length (in frames)."""
    height = 250
    drawing = Drawing(width, height, "Number of episodes by length")
    bins = np.linspace(values.min(), values.max() + 1, min(31, int(np.ptp(values)) + 2))
    counts, edges = np.histogram(values, bins=bins)
    x = Scale((float(edges[0]), float(edges[-1])), (44, width - 12))
    y = Scale((0.0, float(counts.max())), (height - 52, 30))
    axis_y(
        drawing, y, [(v, f"{v:g}") for v in nice_ticks(0, float(counts.max()), 4) if v == int(v)], x.span, "episodes"
    )
    for left, right, number in zip(edges[:-1], edges[1:], counts, strict=True):
        tip = f"{count(int(number), 'episode')} of {np.ceil(left):.0f} to {np.ceil(right) - 1:.0f} frames"
        drawing.rect(x(left) + 0.5, y(number), x(right) - x(left) - 1, y(0) - y(number), "bar c0", tip)
    ticks = nice_ticks(float(edges[0]), float(edges[-1]), 4 if width == NARROW else 8)
    axis_x(drawing, x, [(v, f"{v:g}") for v in ticks if v == int(v)], height - 52, "frames per episode")
    return str(drawing)


def histogram(vector: VectorSummary, index: int) -> str:
    """Draw the values of one entry of a feature, with its 1st and 99th percentile as dashed lines."""
    counts = vector.histograms[index]
    low, high = float(vector.stats.min[index]), float(vector.stats.max[index])
    drawing = Drawing(CELL, _CELL_HEIGHT, f"Values of {vector.names[index]}")
    drawing.text((0, 12), vector.names[index], "label ink")
    x = Scale((low, high), (0, CELL - 6))
    y = Scale((0.0, float(counts.max())), (_CELL_HEIGHT - 22, 22))
    width = (CELL - 6) / len(counts)
    for number, found in enumerate(counts):
        left = low + (high - low) * number / len(counts)
        tip = f"{found:,} from {left:.3g} to {left + (high - low) / len(counts):.3g}"
        drawing.rect(number * width, y(found), width - 0.6, y(0) - y(found), "bar c0", tip)
    drawing.line((0, y(0)), (CELL - 6, y(0)), "axis")
    for level in (vector.stats.q01[index], vector.stats.q99[index]):
        drawing.line((x(level), 20), (x(level), y(0)), "threshold")
    drawing.text((0, _CELL_HEIGHT - 6), f"{low:.3g}", "tick")
    drawing.text((CELL - 6, _CELL_HEIGHT - 6), f"{high:.3g}", "tick", "end")
    return str(drawing)
