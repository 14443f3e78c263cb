"""`rdvla report`: one HTML page about one or several evaluations, or about a training run."""

from pathlib import Path
from typing import Annotated

import typer

from rdvla.errors import ConfigError
from rdvla.eval.paired import MARGIN
from rdvla.report.against import Against, compare_runs, format_comparisons, write_comparisons
from rdvla.report.load import Run, load_named, load_runs, split_name
from rdvla.report.page import write_report
from rdvla.report.training import is_training, write_training_report


def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN...",
            help="Folders written by 'rdvla eval' (with a NAME: tables by name, too), or one by 'rdvla train'.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    against: Annotated[
        Path | None, typer.Option(help="Compare every rule, episode by episode, with this evaluation's.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The rule to compare with, if there are several, as the table of 'rdvla eval' names it; of several "
            "runs by NAME: 'NAME, RULE'."
        ),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help=f"A loss of success that would not matter, as a share [default: {MARGIN}].")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the comparison to this file.")] = None,
) -> None:
    """Write a self-contained HTML page: what evaluations found, or how training went.

    With `--against` (or `--baseline`, for rules of the same evaluation): paired statistics of success, and what is
    saved, with intervals. What differs beside the rule is named.
    """
    named = [split_name(run) for run in runs]
    if any(is_training(folder) for _, folder in named):
        (name, folder), *others = named
        if name or others or any(option is not None for option in (against, baseline, margin, json)):
            raise ConfigError("a training run has a page of its own, without comparisons; name its folder alone.")
        write_training_report(folder, output)
    else:
        evaluations = load_named(runs)
        comparisons = _compare(evaluations, against, baseline, margin)
        if not comparisons and (json is not None or margin is not None):
            raise ConfigError("--json and --margin belong to a comparison; add --against FOLDER or --baseline RULE.")
        write_report(evaluations, output, comparisons)
        if json is not None:
            write_comparisons(comparisons, json)
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")


def _compare(runs: list[Run], against: Path | None, baseline: str | None, margin: float | None) -> list[Against]:
    if against is None and baseline is None:
        return []
    others = runs if against is None else load_runs([against])
    comparisons = compare_runs(runs, others, baseline=baseline, margin=MARGIN if margin is None else margin)
    print(format_comparisons(comparisons) + "\n")
    return comparisons
