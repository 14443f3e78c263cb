"""`rdvla results`: the published tables on a policy of ours, from runs of `rdvla eval`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rdvla.report.load import load_named
from rdvla.report.results.build import TABLES, make_table, provenance, write_section
from rdvla.report.results.given import sort_runs


def results_command(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=f"One of {', '.join(TABLES)}.")],
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN...", help="Folders written by 'rdvla eval'; runs of one NAME belong together."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The page whose section is written.")] = Path("results.md"),
    json: Annotated[Path | None, typer.Option(help="Also write every number to this file.")] = None,
) -> None:
    """Write one of the paper's tables on our policy: n, 95 % intervals, paired tests, the paper's numbers beside ours.

    A name gives runs a column (depth, e.g. hardest=RUN) or a row (chains) of their own.
    """
    given = sort_runs(load_named(runs))
    section = make_table(table, given)
    print(write_section(section, provenance(given, ("rdvla", *sys.argv[1:])), output, json))
    print(f"\n{output}")
