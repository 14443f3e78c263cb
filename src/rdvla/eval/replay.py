"""Any stopping rule on decisions that were traced to full depth: where it would have stopped, and what that costs.

Shape suffixes: N decisions, R iterations of the traces.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, RecordError
from rdvla.eval.records import EpisodeRecord, read_episodes
from rdvla.eval.traces import DECISION, EXECUTED, ITERATION, read_trace
from rdvla.stops import BUILT_IN, StopRule
from rdvla.types import TO_FULL

CORE, CODA, TOTAL = "policy.core", "policy.coda", "policy.total"
"""Stages of a record that say what a decision costs."""
(GATE,) = (spec for spec in BUILT_IN if spec.name == "latent")
"""What `StopRule.defer` is a limit of."""


@dataclass(frozen=True)
class StageCosts:
    """What parts of a decision took, in milliseconds, on average over the episodes that were traced.

    Attributes:
        rest: everything but the recurrence, encoding above all.
        iteration: the core, once.
        decoding: the Coda, once.
    """

    rest: float
    iteration: float
    decoding: float


@dataclass(frozen=True)
class Decisions:
    """Decisions with their traces.

    Attributes:
        episodes: how many they are of.
        tasks: of every decision: suite and task, `[N]`.
        numbers: of every decision: its episode, `[N]`.
        metrics: float32 `[N, R]` by rule; not a number at the first iteration.
        to_full: float32 `[N, R]`, the mean squared difference of the actions to those at full depth.
        executed: int64 `[N]`, the iteration whose actions were executed.
        rules: the rule that was played, of every decision; None left it to the policy or had a time budget.
        costs: what the stages took; None where the records do not say (a GPU, a server, a rule that was left to the
            policy and counts no decodings).
        checkpoint: fingerprint of the policy's; empty if it has none.
    """

    episodes: int
    tasks: Sequence[str]
    numbers: Sequence[int]
    metrics: Mapping[str, NDArray[np.float32]]
    to_full: NDArray[np.float32]
    executed: NDArray[np.int64]
    rules: Sequence[StopRule | None]
    costs: StageCosts | None
    checkpoint: str = ""

    @property
    def depth(self) -> int:
        """Iterations of every trace."""
        return int(self.to_full.shape[1])


@dataclass(frozen=True)
class RuleEffect:
    """What a rule does to decisions, one number for each.

    Attributes:
        iterations: of the core.
        decodings: of the Coda.
        change: mean squared difference of the actions to those at full depth.
    """

    iterations: NDArray[np.int64]
    decodings: NDArray[np.int64]
    change: NDArray[np.float32]

    def milliseconds(self, costs: StageCosts) -> NDArray[np.float64]:
        """Return how long every decision takes at these costs."""
        return costs.rest + costs.iteration * self.iterations + costs.decoding * self.decodings


def replay(rule: StopRule, decisions: Decisions) -> RuleEffect:
    """Return what `rule` would have done.

    Raises:
        ConfigError: the traces do not say: they are shallower than the rule may go, have no column for it, or it does
            not look at every iteration.
    """
    if rule.max_depth > decisions.depth:
        raise ConfigError(
            f"{rule} may iterate {rule.max_depth} times, but the traces end at {decisions.depth}; "
            f"trace deeper, or give --max-depth {decisions.depth}."
        )
    spec = rule.spec
    if spec is None:
        stops = np.full(len(decisions.tasks), rule.max_depth)
        return _outcome(stops, np.ones_like(stops), decisions)
    if rule.check_every != 1:
        raise ConfigError("traces compare neighbouring iterations, so check_every must be 1 to be replayed.")
    assert rule.threshold is not None
    passed_NR = spec.passed(metric_of(rule.name, decisions)[:, : rule.max_depth], rule.threshold)
    passed_NR[:, : rule.min_depth - 1] = False
    if rule.defer is None:
        stops = _first(passed_NR, rule.max_depth)
        return _outcome(stops, stops if rule.reads_actions else np.ones_like(stops), decisions)
    open_NR = GATE.passed(metric_of(GATE.name, decisions)[:, : rule.max_depth], rule.defer)
    open_NR[:, : rule.min_depth - 1] = False
    opens = _first(open_NR, rule.max_depth + 1)
    stops = _first(passed_NR & (np.arange(1, rule.max_depth + 1) >= opens[:, None]), rule.max_depth)
    return _outcome(stops, np.maximum(stops - opens + 2, 1), decisions)


def _first(true_NR: NDArray[np.bool_], otherwise: int) -> NDArray[np.int64]:
    """Return the number of the first iteration at which it is true."""
    return np.where(true_NR.any(axis=1), true_NR.argmax(axis=1) + 1, otherwise)


def metric_of(name: str, decisions: Decisions) -> NDArray[np.float32]:
    """Return what a rule saw, `[N, R]`.

    Raises:
        ConfigError: it did not exist, or was not installed, when the traces were made.
    """
    if name not in decisions.metrics:
        raise ConfigError(f"the traces have no column '{name}'; play them again with that rule installed.")
    return decisions.metrics[name]


def _outcome(stops: NDArray[np.int64], decodings: NDArray[np.int64], decisions: Decisions) -> RuleEffect:
    return RuleEffect(stops, decodings, decisions.to_full[np.arange(len(stops)), stops - 1])


def agreement(decisions: Decisions) -> tuple[int, int]:
    """Return in how many decisions the replay of the rule that was played stops where the policy did, and of how many.

    Decisions of a rule that cannot be replayed do not count.
    """
    same = of = 0
    for rule in set(decisions.rules):
        if rule is None or rule.check_every != 1 or rule.max_depth > decisions.depth:
            continue
        mask = np.array([each == rule for each in decisions.rules])
        stops = replay(rule, decisions).iterations
        same += int((stops == decisions.executed)[mask].sum())
        of += int(mask.sum())
    return same, of


def read_decisions(folders: Sequence[Path]) -> Decisions:
    """Read every traced episode of evaluations.

    Raises:
        RecordError: a folder holds no evaluation, or a record or a trace is damaged.
        ConfigError: nothing is traced, a folder is named twice, or traces of different policies, starts, ways to
            execute chunks, protocols, depths or columns are mixed.
    """
    traced = [(record, folder / record.trace) for folder, record in read_episodes(folders) if record.trace is not None]
    if not traced:
        named = ", ".join(f"'{folder}'" for folder in folders)
        raise ConfigError(f"no episode of {named} is traced; play some with 'rdvla eval --trace-depth 32'.")
    records = [record for record, _ in traced]
    _require_one({record.warm_start for record in records}, "starts (--start)")
    _require_one({record.execution for record in records}, "ways to execute chunks (--horizon, --strategy)")
    tables = [read_trace(path) for _, path in traced]
    names = {frozenset(table) for table in tables}
    depths = [int(table[ITERATION].max()) for table in tables]
    _require_one({*depths}, "depths")
    _require_one(names, "rules")
    depth = depths[0]
    columns = {
        name: np.concatenate([table[name] for table in tables]).reshape(-1, depth)
        for name in names.pop()
        if name not in (DECISION, ITERATION)
    }
    executed_NR = columns.pop(EXECUTED)
    numbers = [number for number, table in enumerate(tables) for _ in table[DECISION][::depth]]
    per_decision = [records[number] for number in numbers]
    if len(per_decision) != len(executed_NR) or not (executed_NR.sum(axis=1) == 1).all():
        raise RecordError(
            "a trace does not say for every decision which iteration was executed: it is damaged, or less deep than "
            "the decisions; play the episodes again into another folder."
        )
    return Decisions(
        episodes=len(records),
        tasks=[f"{record.suite} {record.task_id}" for record in per_decision],
        numbers=numbers,
        to_full=columns.pop(TO_FULL),
        metrics=columns,
        executed=executed_NR.argmax(axis=1) + 1,
        rules=[record.stop if record.budget_ms is None else None for record in per_decision],
        costs=_costs(records),
        checkpoint=records[0].checkpoint,
    )


def _require_one(values: Collection[object], what: str) -> None:
    if len(values) > 1:
        found = ", ".join(sorted(map(str, values))) if all(isinstance(each, str) for each in values) else ""
        raise ConfigError(f"the traces are of different {what}{found and f': {found}'}; name folders of one kind.")


def _costs(records: Sequence[EpisodeRecord]) -> StageCosts | None:
    core = coda = total = decodings = 0.0
    decided = iterations = 0
    for record in records:
        stages = [record.latency_ms.get(stage) for stage in (CORE, CODA, TOTAL)]
        if any(stage is None for stage in stages) or (record.stop is None and "codas" not in record.signals):
            return None
        core, coda, total = (value + sum(stage or ()) for value, stage in zip((core, coda, total), stages, strict=True))
        decided += len(record.iterations)
        iterations += sum(record.iterations)
        decodings += sum(_decodings(record))
    return StageCosts((total - core - coda) / decided, core / iterations, coda / decodings)


def _decodings(record: EpisodeRecord) -> list[float]:
    """Return how often the Coda was asked in every decision: as counted, in older records as the rule has it."""
    rule, counted = record.stop, record.signals.get("codas")
    if counted is not None:
        return [count for count in counted if count is not None]
    if rule is None or not rule.reads_actions:
        return [1.0] * len(record.iterations)
    return [float(-(-depth // rule.check_every)) for depth in record.iterations]
