"""One decision: iterate until every sample has converged, or time or depth runs out.

Samples that have converged leave the batch, so a batch costs the sum of its depths, and a sample's result does not
depend on its companions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from rdvla.model.budget import Timer
from rdvla.model.stopping import Look, StoppingCriterion
from rdvla.policy import WarmStart
from rdvla.stops import StopRule


class Kept(Protocol):
    """What stays fixed while the core iterates, of every sample; see `rdvla.model.recurrent.Conditioning`."""

    def select(self, rows: Tensor) -> Self:
        """Keep the samples `rows` (int64 indices)."""
        ...


Given = TypeVar("Given", bound=Kept)
Given_contra = TypeVar("Given_contra", contravariant=True)


class Recurrence(Protocol[Given_contra]):
    """The part of a head that a decision needs: a `RecurrentHead`, or the same recorded."""

    @property
    def core(self) -> Callable[[Tensor, Given_contra], Tensor]:
        """One iteration, `[B, K, D]` to `[B, K, D]`."""
        ...

    @property
    def coda(self) -> Callable[[Tensor, Given_contra], Tensor]:
        """From the scratchpad `[B, K, D]` to normalised actions `[B, K, A]`."""
        ...


@dataclass(frozen=True)
class HeadOutput:
    """What the head makes of a batch.

    Attributes:
        actions: normalised actions `[B, K, A]`.
        num_recurrences: int64 `[B]` iterations taken by each sample.
        out_of_time: bool `[B]` samples whose recurrence the budget ended.
        traces: per sample, the criterion's metric at each check.
        carry: the scratchpads `[B, K, D]` that the next decisions may begin with, if they were asked for.
        signals: whatever else is known about the samples' decisions, `[B]` by name (`rdvla.types.ActionChunk.signals`).
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
    """Iterate the core and decode. The host waits for the device once per check, and never between.

    Args:
        head: the action head.
        conditioning: `head.condition(...)` of the batch.
        latents_BKD: initial scratchpads.
        criterion: judges convergence between consecutive checks.
        rule: depth limits and how often to check.
        timer: asked before every iteration but the first whether it still fits; if not, the best so far is decoded.
        warm_start: which scratchpad to keep for the next decision: the one after `half` of the iterations or at the
            `end`; `noise` keeps none.
    """
    timer = timer or Timer()
    batch = len(latents_BKD)
    depths = torch.zeros(batch, dtype=torch.long)
    out_of_time = torch.zeros(batch, dtype=torch.bool)
    traces: list[list[float]] = [[] for _ in range(batch)]
    final: list[Tensor | None] = [None] * batch
    rows = torch.arange(batch)
    previous: Look | None = None
    actions: Tensor | None = None
    kept: list[tuple[list[int], Tensor]] = []  # which samples, and their scratchpads, after every iteration
    for depth in range(1, rule.max_depth + 1):
        if depth > 1 and not timer.allows_another():
            out_of_time[rows] = True
            break
        latents_BKD, actions = head.core(latents_BKD, conditioning), None
        depths[rows] = depth
        timer.lap("iteration")
        if warm_start != "noise":
            kept.append((rows.tolist(), latents_BKD))
        if rule.name == "fixed" or depth % rule.check_every:
            continue
        if criterion.needs_actions:
            actions = head.coda(latents_BKD, conditioning)
            timer.lap("decode")
        current = Look(latents_BKD, actions)
        if previous is not None:
            metric = criterion.measure(previous, current).cpu()  # the one wait
            for row, number in zip(rows.tolist(), metric.tolist(), strict=True):
                traces[row].append(number)
            converged = criterion.passed(metric)
            if depth >= rule.min_depth and converged.any():
                done, stay = (each.nonzero().flatten() for each in (converged, ~converged))
                leaving, staying = done.to(latents_BKD.device), stay.to(latents_BKD.device)
                finished = current.select(leaving)
                decoded = finished.actions
                if decoded is None:
                    decoded = head.coda(finished.latents, conditioning.select(leaving))
                    timer.lap("decode")
                for row, action in zip(rows[done].tolist(), decoded, strict=True):
                    final[row] = action
                rows = rows[stay]
                if not len(rows):
                    break
                conditioning, current = conditioning.select(staying), current.select(staying)
                latents_BKD, actions = current.latents, current.actions
        previous = current
    if len(rows):
        if actions is None:
            actions = head.coda(latents_BKD, conditioning)
            timer.lap("decode")
        for row, action in zip(rows.tolist(), actions, strict=True):
            final[row] = action
    answers = torch.stack([action for action in final if action is not None])
    return HeadOutput(answers, depths, out_of_time, traces, _carry(kept, depths.tolist(), warm_start))


def _carry(kept: Sequence[tuple[list[int], Tensor]], depths: Sequence[int], warm_start: WarmStart) -> Tensor | None:
    """Return every sample's scratchpad after half of its iterations, at least one, or after all of them."""
    if not kept:
        return None
    chosen = [kept[(max(1, depth // 2) if warm_start == "half" else depth) - 1] for depth in depths]
    return torch.stack([latents_BKD[rows.index(row)] for row, (rows, latents_BKD) in enumerate(chosen)])
