"""`rdvla report`: one HTML page about one or several evaluations."""

from pathlib import Path
from typing import Annotated

import typer

from rdvla.report.page import write_report


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders written by 'rdvla eval'.")],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """Write a self-contained HTML page: success against depth, iterations, convergence, latency, tasks, films."""
    write_report(runs, output)
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
