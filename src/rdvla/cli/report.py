"""`rdvla report`: one HTML page about one or several evaluations, or about a training run."""

from pathlib import Path
from typing import Annotated

import typer

from rdvla.errors import ConfigError
from rdvla.report.page import write_report
from rdvla.report.training import is_training, write_training_report


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders written by 'rdvla eval', or one by 'rdvla train'.")
    ],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """Write a self-contained HTML page: what evaluations found, or how training went."""
    if any(is_training(run) for run in runs):
        if len(runs) > 1:
            raise ConfigError("a training run has a page of its own; name its folder alone.")
        write_training_report(runs[0], output)
    else:
        write_report(runs, output)
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
