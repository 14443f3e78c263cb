"""Tables and numbers in plain text."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a table; the first is its head, the first column is aligned left, the others right.

    A row may be shorter than the longest; its cells are the first ones.
    """
    columns = max(map(len, rows))
    full = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in full) for column in range(columns)]
    lines = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in full
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def number(value: float) -> str:
    """Return three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def count(number: int, noun: str) -> str:
    """Return `1 episode`, `2 episodes`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
