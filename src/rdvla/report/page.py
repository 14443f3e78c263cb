"""Puts runs, figures and films into one HTML page that needs nothing else."""

import base64
import shlex
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rdvla.eval.intervals import Rate
from rdvla.eval.records import EpisodeRecord, ErrorRecord
from rdvla.eval.summary import group_by, summarise_group
from rdvla.files import write_atomically
from rdvla.report import figures, findings
from rdvla.report.against import Against
from rdvla.report.chains import by_place, chain_section
from rdvla.report.chains import headline as chain_headline
from rdvla.report.load import RuleGroup, Run, Series, group_runs, say_mixed, say_starts, task_words
from rdvla.report.results.build import possible_tables, whole_tables
from rdvla.report.results.given import sort_runs
from rdvla.report.svg import HALF, NARROW, WIDE
from rdvla.report.template import render_template
from rdvla.report.traces import trace_section
from rdvla.report.tradeoff import compared_in_time, success_against_time
from rdvla.tables import count

MAX_COMPARED = 3
"""Adaptive rules drawn into one figure of iterations; the page says which are left out."""


@dataclass(frozen=True)
class TaskCell:
    """Success of one task under one rule; `shade` is the rate in 0..1, None without episodes."""

    rate: Rate
    errors: int

    @property
    def shade(self) -> float | None:
        """Return the rate, or None without episodes."""
        return self.rate.value if self.rate.n else None


def write_report(runs: Sequence[Run], output: Path, comparisons: Sequence[Against] = ()) -> None:
    """Write the report of evaluations as one HTML file, with `comparisons` first.

    Raises:
        ConfigError: see `render`.
        MissingExtraError: Jinja2 is not installed.
        StorageError: `output` cannot be written; nothing is left half-written.
    """
    write_atomically(output, render(runs, comparisons))


def render(runs: Sequence[Run], comparisons: Sequence[Against] = ()) -> str:
    """Return the page; runs with names get the tables of names (ablations; rows and columns of other tables), too.

    Raises:
        ConfigError: two runs hold the same episode played differently, or runs of one name, or those without one
            beside others with names, are of several policies.
        MissingExtraError: Jinja2 is not installed.
    """
    series = group_runs(runs)
    by_name = possible_tables(sort_runs(runs)) if any(run.name for run in runs) else []
    shown = {section.name for section in by_name}
    return render_template(
        "page.html",
        headline=chain_headline(series) or findings.headline(series),
        lede=_lede(series),
        comparisons=comparisons,
        depth=_depth_section(series),
        by_name=by_name,
        policies=[
            _policy_section(one, several=len(series) > 1, but=set() if one.runs[0].name else shown) for one in series
        ],
        films=_films(series),
        errors=[record for one in series for record in one.records if isinstance(record, ErrorRecord)],
        runs=[_provenance(run) for run in runs],
    )


def _lede(series: Sequence[Series]) -> str:
    records = [record for one in series for record in one.records]
    played = [record for record in records if isinstance(record, EpisodeRecord)]
    tasks = {(record.suite, record.task_id) for record in records}
    suites = sorted({record.suite + (f", protocol {record.protocol}" if record.protocol else "") for record in records})
    decisions = sum(len(record.iterations) for record in played)
    several = say_mixed(records)
    mixed = f"Not alike in all: {several}. " if several else ""
    alike = " (of chains all alike, sums of Wilson's)" if any(record.num_stages > 1 for record in played) else ""
    return (
        f"{count(len(played), 'episode')} of {count(len(tasks), 'task')} ({', '.join(suites)}), "
        f"{say_starts(records)}; {count(decisions, 'decision')}. {mixed}"
        f"Intervals are at 95 %: of rates Wilson's, of means bootstrapped{alike}."
    )


def _both(draw: Callable[[int], str], wide: int = WIDE) -> dict[str, str]:
    return {"wide": draw(wide), "narrow": draw(NARROW)}


def _depth_section(series: Sequence[Series]) -> dict[str, Any] | None:
    if not any(one.fixed or one.adaptive for one in series):
        return None
    return {
        "figure": _both(lambda width: figures.success_against_depth(series, width)),
        "findings": [(one.label if len(series) > 1 else "", findings.about_depth(one)) for one in series],
    }


def _policy_section(series: Series, *, several: bool, but: Set[str]) -> dict[str, Any]:
    adaptive = series.adaptive[:MAX_COMPARED]
    timed = [rule for rule in series.rules if "decide" in rule.summary.latency_ms]
    traced = [section for rule in series.rules if (section := trace_section(series, rule)) is not None]
    # checks of a rule that defers begin at different iterations
    checked = [rule for rule in series.adaptive if rule.stop is not None and rule.stop.defer is None]
    converging = [rule for rule in checked if any(trace for r in rule.played for trace in r.convergence)]
    return {
        "label": series.label if several else "",
        "rules": series.rules,
        "signals": list(dict.fromkeys(name for rule in series.rules for name in rule.summary.signals)),
        "alarms": [sentence for rule in series.rules if (sentence := findings.about_alarm(rule))],
        "chains": chain_section(series),
        "tasks": _task_rows(series),
        "results": [section for section in whole_tables(series) if section.name not in but],
        "iterations": adaptive
        and {
            "per_task": _both(lambda width: figures.iterations_per_task(adaptive, width)),
            "over_episode": _both(lambda width: figures.iterations_over_episode(adaptive, width), HALF),
            "histogram": _both(lambda width: figures.histogram(adaptive, width), HALF),
            "by_place": (placed := [rule for rule in adaptive if by_place(rule)])
            and _both(lambda width: figures.iterations_by_place(placed, width)),
            "findings": [findings.about_iterations(rule) for rule in series.adaptive],
            "left_out": [rule.name for rule in series.adaptive[MAX_COMPARED:]],
        },
        "convergence": [
            {"label": rule.name, "figure": _both(partial(figures.convergence, rule))} for rule in converging
        ],
        "traces": [{"figure": _both(one.draw), "sentence": one.sentence} for one in traced],
        "tradeoff": (quickest := compared_in_time(series))
        and _both(lambda width: success_against_time(quickest, width)),
        "latency": timed
        and {
            "figure": _both(lambda width: figures.latency(timed, width)),
            "findings": findings.about_latency(series),
            "stages": list(dict.fromkeys(stage for rule in timed for stage in rule.summary.latency_ms)),
            "rules": timed,
        },
    }


def _task_rows(series: Series) -> list[dict[str, Any]]:
    groups = group_by(series.records, lambda record: (record.suite, record.task_id))
    return [
        {
            "suite": suite,
            "task_id": task_id,
            "instruction": task_words(group),
            "cells": [_cell(rule, (suite, task_id)) for rule in series.rules],
        }
        for (suite, task_id), group in sorted(groups.items())
    ]


def _cell(rule: RuleGroup, task: tuple[str, int]) -> TaskCell:
    summary = summarise_group(record for record in rule.records if (record.suite, record.task_id) == task)
    return TaskCell(summary.rate, summary.errors)


def _films(series: Sequence[Series]) -> list[dict[str, Any]]:
    films: list[tuple[EpisodeRecord, dict[str, Any]]] = []
    for one in series:
        for run in one.runs:
            for record in run.records:
                if isinstance(record, EpisodeRecord) and record.video and (run.folder / record.video).is_file():
                    content = (run.folder / record.video).read_bytes()
                    film = {
                        "source": "data:video/mp4;base64," + base64.b64encode(content).decode("ascii"),
                        "policy": one.label if len(series) > 1 else "",
                        "record": record,
                        "mean": sum(record.iterations) / len(record.iterations),
                    }
                    films.append((record, film))
    films.sort(key=lambda entry: (entry[0].suite, entry[0].task_id))
    return [film for _, film in films]


def _provenance(run: Run) -> dict[str, Any]:
    versions: dict[str, list[str]] = {}
    for record in run.records:
        for package, version in record.versions.items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    return {
        "folder": f"{run.name} ({run.folder.name})" if run.name else run.folder.name,
        "command": shlex.join(run.command),
        "config": {
            name: value for name, value in run.config.items() if name in ("policy", "policy_digest", "protocol", "seed")
        },
        "policy": {name: value for name, value in run.policy.items() if name != "extra" and value not in ("", None)}
        | dict(run.policy.get("extra", {})),
        "versions": {package: ", ".join(found) for package, found in sorted(versions.items())},
        "wall_hours": sum(r.wall_s for r in run.records if isinstance(r, EpisodeRecord)) / 3600,
    }
