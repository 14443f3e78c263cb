"""One decision: iterate until every sample has converged, or time or depth runs out.

Samples that have converged leave the batch, so a batch costs the sum of its depths, and a sample's result does not
depend on its companions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rdvla.model.budget import Timer
from rdvla.model.stopping import StoppingCriterion
from rdvla.model.watch import Given, Recurrence, there, watch
from rdvla.policy import WarmStart
from rdvla.stops import FIXED, StopRule


@dataclass(frozen=True)
class HeadOutput:
    """What the head makes of a batch.

    Attributes:
        actions: normalised actions `[B, K, A]`.
        num_recurrences: int64 `[B]` iterations taken by each sample.
        out_of_time: bool `[B]` samples whose recurrence the budget ended.
        traces: per sample, the criterion's metric at each check.
        carry: the scratchpads `[B, K, D]` that the next decisions may begin with, if they were asked for.
        signals: whatever else is known about the samples' decisions, `[B]` by name (`rdvla.types.ActionChunk.signals`):
            under a rule that reads actions `codas`, how often the Coda was asked.
    """

    actions: Tensor
    num_recurrences: Tensor
    out_of_time: Tensor
    traces: list[list[float]]
    carry: Tensor | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def decide(
    head: Recurrence[Given],
    conditioning: Given,
    latents_BKD: Tensor,
    criterion: StoppingCriterion,
    rule: StopRule,
    *,
    timer: Timer | None = None,
    warm_start: WarmStart = "noise",
) -> HeadOutput:
    """Iterate the core and decode. The host waits for the device once per check (twice where a gate opens).

    Args:
        head: the action head.
        conditioning: `head.condition(...)` of the batch.
        latents_BKD: initial scratchpads.
        criterion: judges convergence between consecutive checks.
        rule: depth limits, how often to check, and whether to defer the Coda.
        timer: asked before every iteration but the first whether it still fits; if not, the best so far is decoded.
        warm_start: which scratchpad to keep for the next decision: the one after `half` of the iterations or at the
            `end`; `noise` keeps none.
    """
    timer = timer or Timer()
    batch = len(latents_BKD)
    depths, codas = (torch.zeros(batch, dtype=torch.long) for _ in range(2))
    out_of_time = torch.zeros(batch, dtype=torch.bool)
    traces: list[list[float]] = [[] for _ in range(batch)]
    final: list[Tensor | None] = [None] * batch
    trail = Trail(warm_start, rule.max_depth, batch)
    rows = torch.arange(batch)
    eyes = watch(head, criterion, rule, timer, batch)
    for depth in range(1, rule.max_depth + 1):
        if depth > 1 and not timer.allows_another(decodings=1 if rule.defer is None else 2):
            out_of_time[rows] = True
            break
        latents_BKD = head.core(latents_BKD, conditioning)
        depths[rows] = depth
        timer.lap("iteration")
        trail.note(depth, rows, latents_BKD)
        if rule.name == FIXED or depth % rule.check_every:
            continue
        seen = eyes.look(latents_BKD, conditioning, may_stop=depth >= rule.min_depth)
        if seen is None:
            continue
        compared, metric = seen
        for row, number in zip(rows[compared].tolist(), metric[compared].tolist(), strict=True):
            traces[row].append(number)
        converged = criterion.passed(metric)
        if depth >= rule.min_depth and converged.any():
            done, stay = (each.nonzero().flatten() for each in (converged, ~converged))
            for row, action in zip(rows[done].tolist(), eyes.answers(latents_BKD, conditioning, done), strict=True):
                final[row] = action
            codas[rows[done]] = eyes.codas[done]
            trail.leave(rows[done])
            rows = rows[stay]
            if not len(rows):
                break
            latents_BKD, conditioning = eyes.select(stay), conditioning.select(there(stay, latents_BKD))
    if len(rows):
        for row, action in zip(rows.tolist(), eyes.answers(latents_BKD, conditioning), strict=True):
            final[row] = action
        codas[rows] = eyes.codas
        trail.leave(rows)
    answers = torch.stack([action for action in final if action is not None])
    signals = {"codas": codas} if criterion.needs_actions else {}
    return HeadOutput(answers, depths, out_of_time, traces, trail.carry, signals)


class Trail:
    """The scratchpads that warm starts may want: not every one, but those at half of a depth that is still possible.

    A sample that is still there after r iterations stops after r to `max_depth`, so `half` wants one of those after
    r / 2 to `max_depth` / 2: a quarter of `max_depth` and one more at most.
    """

    def __init__(self, warm_start: WarmStart, max_depth: int, batch: int) -> None:
        """Keep what `warm_start` wants of `batch` samples that stop after at most `max_depth` iterations."""
        self._warm_start = warm_start
        self._last = self._wanted(max_depth)
        self._depth = 0
        self._kept: dict[int, tuple[list[int], Tensor]] = {}
        self._left: list[Tensor | None] = [None] * batch

    def _wanted(self, depth: int) -> int:
        """Return the scratchpad, by iterations, that is wanted of a sample which stops at `depth`."""
        return max(1, depth // 2) if self._warm_start == "half" else depth

    def note(self, depth: int, rows: Tensor, latents_BKD: Tensor) -> None:
        """Take the scratchpads of the samples `rows` after iteration `depth`."""
        if self._warm_start == "noise":
            return
        self._depth, first = depth, self._wanted(depth)
        self._kept = {number: kept for number, kept in self._kept.items() if number >= first}
        if depth <= self._last:
            self._kept[depth] = rows.tolist(), latents_BKD

    def leave(self, rows: Tensor) -> None:
        """The samples `rows` stop at the present iteration."""
        if self._warm_start == "noise":
            return
        numbers, latents_BKD = self._kept[self._wanted(self._depth)]
        for row in rows.tolist():
            self._left[row] = latents_BKD[numbers.index(row)].clone()

    @property
    def carry(self) -> Tensor | None:
        """What is wanted of all samples, `[B, K, D]`; None from `noise`."""
        left = [latents for latents in self._left if latents is not None]
        return torch.stack(left) if left else None
