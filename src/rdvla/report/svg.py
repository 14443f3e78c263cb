"""Enough SVG for a paper's figures: scales, axes, marks, labels that do not overlap. Colours are CSS classes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDE, HALF, NARROW = 900, 430, 340
"""Widths of a page's figures in pixels: across it, two beside each other, and on a telephone."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels.

    Attributes:
        domain: the values at both ends.
        span: the pixels at both ends.
        log: whether the values are spaced logarithmically.
    """

    domain: tuple[float, float]
    span: tuple[float, float]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`, which may lie outside the domain."""
        transform: Callable[[float], float] = math.log if self.log else float
        low, high = transform(self.domain[0]), transform(self.domain[1])
        share = (transform(value) - low) / (high - low) if high > low else 0.5
        return self.span[0] + share * (self.span[1] - self.span[0])


class Drawing:
    """An SVG picture that grows mark by mark."""

    def __init__(self, width: float, height: float, title: str) -> None:
        """Begin a picture of `width` by `height` pixels; `title` describes it to those who cannot see it."""
        self.width, self.height, self._title = width, height, title
        self._marks: list[str] = []

    def line(self, a: Point, b: Point, css: str) -> None:
        """Draw a straight line."""
        self._marks.append(f'<line x1="{_n(a[0])}" y1="{_n(a[1])}" x2="{_n(b[0])}" y2="{_n(b[1])}" class="{css}"/>')

    def path(self, points: Sequence[Point], css: str, *, close: bool = False) -> None:
        """Draw a line through all points, or a filled shape."""
        if points:
            steps = " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
            self._marks.append(f'<path d="M{steps}{"Z" if close else ""}" class="{css}"/>')

    def band(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], css: str) -> None:
        """Fill the area between two curves, given in pixels."""
        outline = [*zip(xs, lows, strict=True), *reversed(list(zip(xs, highs, strict=True)))]
        self.path(outline, css, close=True)

    def dot(self, at: Point, radius: float, css: str, tip: str = "") -> None:
        """Draw a disc; `tip` shows under the mouse."""
        self._mark(f'<circle cx="{_n(at[0])}" cy="{_n(at[1])}" r="{_n(radius)}" class="{css}"', "circle", tip)

    def diamond(self, at: Point, radius: float, css: str, tip: str = "") -> None:
        """Draw a diamond."""
        (x, y), r = at, radius
        d = f"M{_n(x)} {_n(y - r)} L{_n(x + r)} {_n(y)} L{_n(x)} {_n(y + r)} L{_n(x - r)} {_n(y)}Z"
        self._mark(f'<path d="{d}" class="{css}"', "path", tip)

    def rect(self, x: float, y: float, width: float, height: float, css: str, tip: str = "") -> None:
        """Draw a rectangle from its top left corner."""
        box = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(max(height, 0))}"'
        self._mark(f'{box} class="{css}"', "rect", tip)

    def text(self, at: Point, text: str, css: str = "", anchor: str = "start") -> None:
        """Write a line of text whose baseline is at `at`; `anchor` is start, middle or end."""
        classes = f' class="{css}"' if css else ""
        self._marks.append(
            f'<text x="{_n(at[0])}" y="{_n(at[1])}" text-anchor="{anchor}"{classes}>{escape(text)}</text>'
        )

    def _mark(self, opening: str, tag: str, tip: str) -> None:
        self._marks.append(f"{opening}><title>{escape(tip)}</title></{tag}>" if tip else f"{opening}/>")

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" width="{_n(self.width)}" '
            f'height="{_n(self.height)}" role="img" aria-label="{escape(self._title, quote=True)}">'
            + "".join(self._marks)
            + "</svg>"
        )


def _n(number: float) -> str:
    return f"{number:.1f}".rstrip("0").rstrip(".")


def axis_x(drawing: Drawing, scale: Scale, ticks: Sequence[tuple[float, str]], y: float, title: str) -> None:
    """Draw the horizontal axis at height `y`: a baseline, labelled ticks, and a title at its end."""
    drawing.line((scale.span[0], y), (scale.span[1], y), "axis")
    for value, label in ticks:
        drawing.line((scale(value), y), (scale(value), y + 4), "axis")
        drawing.text((scale(value), y + 17), label, "tick", "middle")
    drawing.text(((scale.span[0] + scale.span[1]) / 2, y + 36), title, "title", "middle")


def axis_y(drawing: Drawing, scale: Scale, ticks: Sequence[tuple[float, str]], x: Point, title: str) -> None:
    """Draw horizontal grid lines between the pixels `x`, their labels on the left, and the title above."""
    for value, label in ticks:
        drawing.line((x[0], scale(value)), (x[1], scale(value)), "grid")
        drawing.text((x[0] - 8, scale(value) + 4), label, "tick", "end")
    drawing.text((x[0] - 34, min(scale.span) - 14), title, "title")


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers in [`low`, `high`]."""
    if high <= low:
        return [low]
    rough = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten in [`low`, `high`]."""
    return [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart until neighbours are `gap` pixels away from each other, within [`low`, `high`] if they fit.

    The order is kept; the result is in the order of `positions`.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = [min(max(positions[index], low), high) for index in order]
    for number in range(1, len(moved)):
        moved[number] = max(moved[number], moved[number - 1] + gap)
    excess = moved[-1] - high if moved else 0.0
    if excess > 0:
        moved[-1] = high
        for number in range(len(moved) - 2, -1, -1):
            moved[number] = min(moved[number], moved[number + 1] - gap)
    result = [0.0] * len(positions)
    for index, position in zip(order, moved, strict=True):
        result[index] = position
    return result
