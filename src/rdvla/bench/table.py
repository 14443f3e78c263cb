"""What the sections beside the main benchmark return: a table for people, the same numbers for machines."""

from dataclasses import dataclass
from typing import Any

from rdvla.tables import align, number

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """Measured numbers.

    Attributes:
        title: what was measured, with the units.
        columns: their names; the first names what a row is about.
        rows: one cell for each column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def text(self) -> str:
        """Return aligned columns under the title."""
        return f"{self.title}\n\n{align([list(self.columns), *([_shown(cell) for cell in row] for row in self.rows)])}"

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values, unrounded."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows}


def _shown(cell: Cell) -> str:
    return number(cell) if isinstance(cell, float) else str(cell)
