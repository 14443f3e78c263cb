"""The result as plain text."""

from collections.abc import Sequence
from itertools import groupby

from rdvla.bench.measure import OURS, PUBLISHED, Row
from rdvla.bench.suite import BenchResult
from rdvla.tables import align, number


def format_result(result: BenchResult) -> str:
    """Return one table per section, and what the numbers depend on."""
    machine = result.machine
    header = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.description.items())
    tables = [_table(list(rows)) for _, rows in groupby(result.rows, key=lambda row: row.section)]
    closing = (
        f"{header}\nThe machine reads {machine.bytes_per_second / 1e9:.1f} GB/s and multiplies "
        f"{machine.flops_per_second / 1e9:.0f} GFLOP/s in float32. Floor: every weight read once per iteration, every "
        "operation at that speed.\nIn brackets: how many times better than the published computation, in the same run."
    )
    return "\n\n".join([*tables, closing])


def _table(rows: Sequence[Row]) -> str:
    variants = list(dict.fromkeys(name for row in rows for name in row.values))
    has_floor = any(row.floor is not None for row in rows)
    lines = [[f"{rows[0].section} ({rows[0].unit})", *variants, *(["floor", "x floor"] if has_floor else [])]]
    for row in rows:
        cells = [_cell(row, name) if name in row.values else "-" for name in variants]
        if has_floor:
            distance = row.distance(OURS)
            cells += ["-" if row.floor is None else number(row.floor), "-" if distance is None else f"{distance:.1f}"]
        lines.append([row.name, *cells])
    inexact = {name: max(row.differences.get(name, 0.0) for row in rows) for name in variants}
    if any(len(row.differences) > 1 for row in rows):
        lines.append(["largest difference", *("" if v == PUBLISHED else f"{inexact[v]:.1e}" for v in variants)])
    return align(lines)


def _cell(row: Row, variant: str) -> str:
    ratio = row.ratio(variant)
    value = number(row.median(variant))
    return value if ratio is None or variant == PUBLISHED else f"{value} ({ratio:.2f}x)"
