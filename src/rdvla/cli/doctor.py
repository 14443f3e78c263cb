"""`rdvla doctor`: does this machine compute, and draw, what the published numbers were made with?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rdvla.cli.options import SimulatorOptions, with_options

if TYPE_CHECKING:
    from rdvla.doctor.checks import Check

_MARKS = {"pass": "pass", "warn": "WARN", "fail": "FAIL", "skip": "skip"}


@with_options
def doctor_command(
    golden: Annotated[
        Path | None, typer.Option(help="Run every case of a directory of recorded reference values, and only those.")
    ] = None,
    rendering: Annotated[bool, typer.Option(help="Render LIBERO scenes (half a minute to two minutes).")] = True,
    json: Annotated[Path | None, typer.Option(help="Also write every check to this file.")] = None,
    *,
    simulator: SimulatorOptions,
) -> None:
    """Check the environment, the rendering and the arithmetic; exit code 1 if anything failed.

    WARN marks what was not tested or may matter, and does not change the exit code.
    """
    from rdvla.doctor.checks import summary
    from rdvla.doctor.golden import to_json
    from rdvla.files import write_atomically

    simulator.apply()
    checks: list[Check] = []
    for case in _cases(golden, rendering=rendering):
        for check in case:
            typer.echo(_line(check))
        checks += case
    counts = summary(checks)
    typer.echo(", ".join(f"{number} {status}" for status, number in counts.items() if number))
    if json is not None:
        write_atomically(json, to_json(checks))
    if counts["fail"]:
        raise typer.Exit(code=1)


def _cases(golden: Path | None, *, rendering: bool) -> Iterator[list["Check"]]:
    if golden is not None:
        from rdvla.doctor.golden import run_golden

        yield from run_golden(golden)
        return
    from rdvla.doctor.checks import guarded
    from rdvla.doctor.environment import check_environment
    from rdvla.doctor.reference import check_reference

    yield check_environment()
    yield guarded("built-in", check_reference)
    if rendering:
        from rdvla.doctor.rendering import check_rendering

        yield check_rendering()


def _line(check: "Check") -> str:
    """Format one check: verdict, case, quantity, difference and limit, note."""
    measured = "" if check.difference is None else f"  {check.difference:.2e} (limit {check.limit:.1e})"
    note = f"  {check.note}" if check.note else ""
    return f"{_MARKS[check.status]}  {check.case:24} {check.quantity}{measured}{note}"
