"""`rdvla calibrate`: the threshold of a stopping rule, from traces."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rdvla.cli.options import StopOptions
from rdvla.errors import ConfigError
from rdvla.eval.alarm import Scored, fit_alarm, measure_scores, read_played
from rdvla.eval.calibration import Calibrated, Got, Quantity, Target, calibrate
from rdvla.eval.deferring import Deferred, fit_deferred
from rdvla.eval.paired import Interval
from rdvla.eval.replay import agreement, read_decisions
from rdvla.files import write_json
from rdvla.stops import EXACT, rules
from rdvla.tables import align, count

SAME = 0.998
"""What `--same` is where nobody says."""


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
    min_depth: Annotated[int | None, typer.Option(help="Never stop earlier [default: 1].")] = None,
    max_depth: Annotated[int | None, typer.Option(help="Never go on longer [default: 32, or the traces' end].")] = None,
    defer: Annotated[
        bool, typer.Option("--defer", help="Of rules on actions: also fit when to begin to ask the Coda.")
    ] = False,
    same: Annotated[
        float | None,
        typer.Option(help=f"Of --defer: share of decisions to stop at the same iteration [default: {SAME}]."),
    ] = None,
    alarm: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="Instead: the number of steps that a share of successful episodes exceeds, e.g. 0.1, as an alarm "
            "(needs no traces).",
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="Of --alarm: the rule whose episodes count, if there are several, as records name it."),
    ] = None,
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
    if alarm is not None:
        if any(wish is not None for wish in (depth, ms, change, stop, delta, min_depth, max_depth, same)) or defer:
            raise ConfigError("--alarm is calibrated by itself; drop the wishes for a stopping rule.")
        _calibrate_alarm(runs, alarm, rule, folds, json, write)
        return
    if rule is not None:
        raise ConfigError(f"--rule '{rule}' belongs to --alarm; the rules to calibrate are named with --stop.")
    if same is not None and not defer:
        raise ConfigError(f"--same {same:g} belongs to --defer; add it, or drop --same.")
    target = _target({"depth": depth, "ms": ms, "change": change}, delta)
    asked = StopOptions(
        stop=",".join(rules()) if stop is None else stop,
        delta=None if delta is None else str(delta),
        min_depth=min_depth,
        max_depth=max_depth,
    )
    if target is not None and ":" in (stop or ""):
        raise ConfigError(f"a threshold is what is looked for; drop it from --stop '{stop}', or the wish.")
    bases = asked.adaptive()
    if write is not None:
        from rdvla.checkpoints.calibrated import description_of, store_default_stop

        if len(bases) != 1:
            raise ConfigError("--write stores one rule; name it with --stop.")
        description_of(write)  # before traces are read for minutes
    decisions = read_decisions(runs)
    if write is not None:
        _say_if_another(write, decisions.checkpoint)
    if max_depth is None:
        bases = [replace(rule, max_depth=min(rule.max_depth, decisions.depth)) for rule in bases]
    found = calibrate(bases, decisions, target, folds)
    chosen = [each.rule for each in found]
    share = SAME if same is None else same
    deferred = [fit_deferred(rule, decisions, share, folds) for rule in chosen if rule.reads_actions] if defer else []
    if defer and not deferred:
        raise ConfigError("only rules on actions ask the Coda again and again; give one with --defer, e.g. action_mse.")
    equal, of = agreement(decisions)
    tasks = len(set(decisions.tasks))
    of_these = f"{count(decisions.episodes, 'episode')} of {count(tasks, 'task')}"
    print(f"{of_these}, {count(len(decisions.tasks), 'decision')}")
    print(f"the replay of what was played stops where the policy did in {equal:,} of {of:,}\n")
    print(format_table(found, target))
    if deferred:
        print(f"\n{format_deferred(deferred)}")
    if json is not None:
        costs = decisions.costs
        content = {
            "schema": 1,
            "runs": list(map(str, runs)),
            "episodes": decisions.episodes,
            "decisions": len(decisions.tasks),
            "replay": {"same": equal, "of": of},
            "costs_ms": None if costs is None else vars(costs),
            "target": None if target is None else vars(target),
            "rules": [each.as_json() for each in found],
            "deferred": [each.as_json() for each in deferred],
        }
        write_json(json, content)
    if write is not None:
        stored = deferred[0].rule if deferred else found[0].rule
        store_default_stop(write, stored, " ".join([_card(found[0], target), *map(_card_deferred, deferred)]))
        print(f"\n{write} stops at {stored} by default now")


def _say_if_another(checkpoint: Path, played: str) -> None:
    """Tell the user if the episodes were not played by the checkpoint as it is now."""
    from rdvla.policies.sources import fingerprint

    found = fingerprint(checkpoint)
    if played not in (found, ""):
        print(
            f"'{checkpoint}' has the fingerprint {found}, the episodes are of {played}: right if "
            "nothing but its default rule or its alarm has changed since.",
            file=sys.stderr,
        )


def _calibrate_alarm(
    runs: list[Path], alpha: float, rule: str | None, folds: int, json: Path | None, write: Path | None
) -> None:
    if write is not None:
        from rdvla.checkpoints.calibrated import description_of, store_alarm

        description_of(write)
    episodes = read_played(runs, rule)
    if write is not None:
        _say_if_another(write, episodes[0].checkpoint)
    alarm, scored = fit_alarm(episodes, alpha), measure_scores(episodes, sorted({0.05, 0.1, alpha}), folds)
    failures = sum(not episode.success for episode in episodes)
    tasks = len({e.task for e in episodes})
    print(f"{count(len(episodes), 'episode')} of {count(tasks, 'task')}, {count(failures, 'failure')}\n")
    print(format_scores(scored))
    print(f"\nraised after {alarm.steps} steps: fitted on {alarm.episodes} successful episodes for alpha {alpha:g}")
    if json is not None:
        content = {"schema": 1, "runs": list(map(str, runs)), "alarm": vars(alarm)}
        write_json(json, content | {"scores": [each.as_json() for each in scored]})
    if write is not None:
        (measured,) = [each for each in scored[0].detections if each.alpha == alpha]
        sentence = (
            f"After {alarm.steps} control steps: at most {100 * alpha:g} % of successful episodes should take longer "
            f"({alarm.episodes} were played). On tasks that it was not fitted on, "
        )
        if measured.found is None:
            sentence += "it was not measured: there were too few successes."
        else:
            sentence += (
                f"{measured.found} of {measured.failures} failures and {measured.false} of {measured.successes} "
                "successes raised it."
            )
        store_alarm(write, alarm, sentence)
        print(f"\n{write} raises an alarm after {alarm.steps} steps now")


def format_scores(scored: Sequence[Scored]) -> str:
    """Return a table of what foretells a failure, and how well."""
    head = ["score", "AUROC", "alpha", "found", "false alarms", "steps before the end"]
    rows = [
        [
            each.name,
            "-" if each.auroc is None else f"{each.auroc:.2f}",
            f"{at.alpha:g}",
            "-" if at.found is None else f"{at.found}/{at.failures}",
            "-" if at.false is None else f"{at.false}/{at.successes}",
            "-" if at.lead is None else f"{at.lead:.0f}",
        ]
        for each in scored
        for at in each.detections
    ]
    unknown = any(at.found is None for each in scored for at in each.detections)
    why = "\n\n-: other tasks have too few successes for a limit at this alpha" if unknown else ""
    return f"measured on tasks not fitted on\n\n{align([head, *rows])}{why}"


def _target(wishes: dict[Quantity, float | None], delta: float | None) -> Target | None:
    given = [Target(quantity, value) for quantity, value in wishes.items() if value is not None]
    if len(given) + (delta is not None) > 1:
        raise ConfigError("give one of --depth, --ms, --change and --delta.")
    return given[0] if given else None


def format_table(found: Sequence[Calibrated], target: Target | None) -> str:
    """Return a table of rules with what they do, on held-out tasks where there are any."""
    held_out = any(each.held_out is not None for each in found)
    title = "replayed as they are" if target is None else f"wanted: at most {target} on average"
    if target is not None:
        title += "; measured on tasks not fitted on" if held_out else "; of one task, so measured where it was fitted"
    head = ["rule", "threshold", "iterations", "95 % interval", "decodings", "ms", "change", "95 % interval", "p95"]
    rows = [[each.rule.name, f"{each.rule.threshold:{EXACT}}", *_cells(each.held_out or each.fitted)] for each in found]
    return f"{title}\n\n{align([head, *rows])}"


def format_deferred(found: Sequence[Deferred]) -> str:
    """Return a table of gates with what they save."""
    head = ["rule", "defer", "same stop", "95 % interval", "Codas", "95 % interval", "without", "share"]
    rows = [
        [
            each.rule.name,
            f"{each.rule.defer:{EXACT}}",
            f"{each.same.value:.2%}",
            f"{each.same.low:.2%} - {each.same.high:.2%}",
            f"{each.decodings.value:.2f}",
            f"{each.decodings.low:.2f} - {each.decodings.high:.2f}",
            f"{each.plain.value:.2f}",
            f"{each.decodings.value / each.plain.value:.0%}",
        ]
        for each in found
    ]
    held_out = "; measured on tasks not fitted on" if all(each.gates for each in found) else ""
    return f"asking the Coda only near the threshold{held_out}\n\n{align([head, *rows])}"


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


def _card_deferred(each: Deferred) -> str:
    where = "on tasks the gate was not fitted on" if each.gates else "on the traced tasks"
    return (
        f"The Coda is not asked before the scratchpad changes by less than {each.rule.defer:g}: {each.same.value:.2%} "
        f"of decisions stop at the same iteration, with {each.decodings.value:.2f} instead of {each.plain.value:.2f} "
        f"decodings ({where})."
    )
