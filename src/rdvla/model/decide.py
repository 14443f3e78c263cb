"""One decision: iterate until every sample has converged, or time or depth runs out.

Samples that have converged leave the batch, so a batch costs the sum of its depths, and a sample's result does not
depend on its companions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rdvla.model.recurrent import Conditioning, RecurrentHead
from rdvla.model.stopping import Look, StoppingCriterion
from rdvla.policy import StopRule


@dataclass(frozen=True)
class Decision:
    """The outcome of the recurrence for a batch.

    Attributes:
        actions: normalised actions `[B, K, A]`.
        num_recurrences: int64 `[B]` iterations taken by each sample.
        traces: per sample, the criterion's metric at each check.
    """

    actions: Tensor
    num_recurrences: Tensor
    traces: list[list[float]]


def never() -> bool:
    """Time is never up."""
    return False


@torch.no_grad()
def decide(
    head: RecurrentHead,
    conditioning: Conditioning,
    latents_BKD: Tensor,
    criterion: StoppingCriterion,
    rule: StopRule,
    *,
    out_of_time: Callable[[], bool] = never,
) -> Decision:
    """Iterate the core and decode.

    Args:
        head: the action head.
        conditioning: `head.condition(...)` of the batch.
        latents_BKD: initial scratchpads.
        criterion: judges convergence between consecutive checks.
        rule: depth limits and how often to check.
        out_of_time: asked before every iteration but the first; True ends the recurrence with the best so far.
    """
    batch = len(latents_BKD)
    adaptive = rule.name != "fixed"
    depths = torch.zeros(batch, dtype=torch.long)
    traces: list[list[float]] = [[] for _ in range(batch)]
    final: list[Tensor | None] = [None] * batch
    rows = torch.arange(batch)
    previous: Look | None = None
    for depth in range(1, rule.max_depth + 1):
        if depth > 1 and out_of_time():
            break
        latents_BKD = head.core(latents_BKD, conditioning)
        depths[rows] = depth
        if not adaptive or depth % rule.check_every or depth == rule.max_depth == 1:
            continue
        actions = head.coda(latents_BKD, conditioning) if criterion.needs_actions else None
        current = Look(latents_BKD, actions)
        if previous is not None:
            converged, value = criterion(previous, current)
            for row, number in zip(rows.tolist(), value.tolist(), strict=True):
                traces[row].append(number)
            if depth >= rule.min_depth and converged.any():
                done, stay = converged.nonzero().flatten(), (~converged).nonzero().flatten()
                finished = current.select(done)
                decoded = finished.actions
                if decoded is None:
                    decoded = head.coda(finished.latents, conditioning.select(done))
                for row, action in zip(rows[done.cpu()].tolist(), decoded, strict=True):
                    final[row] = action
                rows = rows[stay.cpu()]
                if not len(rows):
                    break
                conditioning, latents_BKD, current = conditioning.select(stay), latents_BKD[stay], current.select(stay)
        previous = current
    if len(rows):
        for row, action in zip(rows.tolist(), head.coda(latents_BKD, conditioning), strict=True):
            final[row] = action
    return Decision(torch.stack([action for action in final if action is not None]), depths, traces)
