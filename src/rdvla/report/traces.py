"""What the traces of an evaluation show: how far every iteration is from the answer at full depth."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rdvla.eval.records import EpisodeRecord
from rdvla.eval.traces import EXECUTED, ITERATION, Trace, read_trace
from rdvla.report.figures import decay
from rdvla.report.load import RuleGroup, Run, Series
from rdvla.types import TO_FULL


def load_traces(runs: Sequence[Run], rule: RuleGroup) -> list[Trace]:
    """Return the traces of the rule's episodes, of those that have one.

    Raises:
        RecordError: a trace is missing or damaged.
    """
    kept = set(map(id, rule.played))
    return [
        read_trace(run.folder / record.trace)
        for run in runs
        for record in run.records
        if isinstance(record, EpisodeRecord) and id(record) in kept and record.trace is not None
    ]


def distances(traces: Sequence[Trace]) -> NDArray[np.float32]:
    """Return the distance to full depth `[decisions, depth]`; the traces have one depth."""
    return np.concatenate([trace[TO_FULL].reshape(-1, int(trace[ITERATION].max())) for trace in traces])


@dataclass(frozen=True)
class TraceSection:
    """A figure, drawn for a width in pixels, and a sentence about it."""

    draw: Callable[[int], str]
    sentence: str


def trace_section(series: Series, rule: RuleGroup) -> TraceSection | None:
    """Return what the page shows of a rule's traces; None without any."""
    traces = load_traces(series.runs, rule)
    if not traces:
        return None
    depths = [int(trace[ITERATION].max()) for trace in traces]
    traces = [trace for trace, depth in zip(traces, depths, strict=True) if depth == max(depths)]
    to_full = distances(traces)
    curves = to_full[:, :-1].astype(float).tolist()
    draw = partial(decay, curves, title=f"From full depth, {rule.name}", label="mean squared difference of the actions")
    left = [float(value) for trace in traces for value in trace[TO_FULL][trace[EXECUTED]]]
    sentence = (
        f"{rule.name}: where the recurrence stopped, the actions were {statistics.fmean(left):.2g} from those at depth "
        f"{to_full.shape[1]} (mean squared difference of normalised actions, {len(left):,} decisions)."
    )
    return TraceSection(draw, sentence if left else "")
