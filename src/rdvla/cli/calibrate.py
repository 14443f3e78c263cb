"""`rdvla calibrate`: the threshold of a stopping rule, from traces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rdvla.cli.parsing import parse_names
from rdvla.errors import ConfigError
from rdvla.eval.calibration import Calibrated, Got, Quantity, Target, base_rules, calibrate
from rdvla.eval.paired import Interval
from rdvla.eval.replay import agreement, read_decisions
from rdvla.files import write_json
from rdvla.tables import align


def calibrate_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of rdvla eval with --trace-depth.")],
    depth: Annotated[float | None, typer.Option(help="Wanted: at most so many iterations on average.")] = None,
    ms: Annotated[
        float | None, typer.Option(help="Wanted: at most so many milliseconds a decision on average.")
    ] = None,
    change: Annotated[
        float | None,
        typer.Option(help="Wanted: actions at most so far from those at full depth (mean squared, normalised)."),
    ] = None,
    stop: Annotated[str | None, typer.Option(help="Rules, e.g. action_mse,latent [default: every one].")] = None,
    delta: Annotated[float | None, typer.Option(help="Instead of a wish: replay --stop with this threshold.")] = None,
    min_depth: Annotated[int, typer.Option(help="Never stop earlier.")] = 1,
    max_depth: Annotated[int | None, typer.Option(help="Never go on longer [default: 32, or the traces' end].")] = None,
    folds: Annotated[int, typer.Option(help="Parts of the tasks, each measured with what the others gave.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Also write every number to this file.")] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Make the rule the default of this checkpoint, in place."),
    ] = None,
) -> None:
    """Choose the threshold of a stopping rule from traces: for a mean depth, a time or a tolerated change.

    Every threshold is replayed on decisions that were traced to full depth. What it promises is measured on tasks that
    it was not fitted on, with 95 % intervals that resample tasks.
    """
    target = _target({"depth": depth, "ms": ms, "change": change}, delta)
    names = None if stop is None else parse_names(stop, field="stop")
    if write is not None:
        from rdvla.checkpoints.default_stop import description_of, store_default_stop

        if names is None or len(names) != 1:
            raise ConfigError("--write stores one rule; name it with --stop.")
        description_of(write)  # before traces are read for minutes
    decisions = read_decisions(runs)
    bases = base_rules(names, delta, min_depth, max_depth, decisions.depth)
    found = calibrate(bases, decisions, target, folds)
    same, of = agreement(decisions)
    print(f"{decisions.episodes:,} episodes of {len(set(decisions.tasks))} tasks, {len(decisions.tasks):,} decisions")
    print(f"the replay of what was played stops where the policy did in {same:,} of {of:,}\n")
    print(format_table(found, target))
    if json is not None:
        costs = decisions.costs
        content = {
            "schema": 1,
            "runs": list(map(str, runs)),
            "episodes": decisions.episodes,
            "decisions": len(decisions.tasks),
            "replay": {"same": same, "of": of},
            "costs_ms": None if costs is None else vars(costs),
            "target": None if target is None else vars(target),
            "rules": [each.as_json() for each in found],
        }
        write_json(json, content)
    if write is not None:
        store_default_stop(write, found[0].rule, _card(found[0], target))
        print(f"\n{write} stops at {found[0].rule} by default now")


def _target(wishes: dict[Quantity, float | None], delta: float | None) -> Target | None:
    given = [Target(quantity, value) for quantity, value in wishes.items() if value is not None]
    if len(given) + (delta is not None) > 1:
        raise ConfigError("give one of --depth, --ms, --change and --delta.")
    return given[0] if given else None


def format_table(found: Sequence[Calibrated], target: Target | None) -> str:
    """Return a table of rules with what they do, on held-out tasks where there are any."""
    held_out = any(each.held_out is not None for each in found)
    title = "replayed as they are" if target is None else f"wanted: at most {target} on average"
    title += "; measured on tasks not fitted on" if held_out else ""
    head = ["rule", "threshold", "iterations", "95 % interval", "decodings", "ms", "change", "95 % interval", "p95"]
    rows = [[each.rule.name, f"{each.rule.threshold:g}", *_cells(each.held_out or each.fitted)] for each in found]
    return f"{title}\n\n{align([head, *rows])}"


def _cells(got: Got) -> list[str]:
    def ends(interval: Interval) -> str:
        return f"{interval.low:.3g} - {interval.high:.3g}"

    return [
        f"{got.iterations.value:.2f}",
        ends(got.iterations),
        f"{got.decodings.value:.2f}",
        "-" if got.ms is None else f"{got.ms.value:.1f}",
        f"{got.change.value:.2g}",
        ends(got.change),
        f"{got.change_p95:.2g}",
    ]


def _card(chosen: Calibrated, target: Target | None) -> str:
    """Return what a model card says of the rule."""
    got = chosen.held_out or chosen.fitted
    wish = "" if target is None else f", chosen for at most {target} on average"
    where = "on tasks it was not fitted on" if chosen.held_out is not None else "on the traced tasks"
    iterations, change = got.iterations, got.change
    return (
        f"`{chosen.rule}`{wish}. Replayed on traces, {where}: {iterations.value:.2f} iterations "
        f"({iterations.low:.2f}-{iterations.high:.2f}), {change.value:.2g} from the actions at full depth "
        "(mean squared difference, normalised)."
    )
