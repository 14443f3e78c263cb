"""What every stopping rule would have seen, had the recurrence gone on to full depth.

Shape suffixes: B batch, R depth, K action tokens, D width, A action size.
"""

import torch
from torch import Tensor

from rdvla.model.stopping import Look, make_criterion
from rdvla.model.watch import Given, Recurrence
from rdvla.stops import StopRule, rules
from rdvla.types import TO_FULL


@torch.no_grad()
def trace(head: Recurrence[Given], conditioning: Given, latents_BKD: Tensor, depth: int) -> dict[str, Tensor]:
    """Iterate to `depth` in the shadow of a decision, from the scratchpads it began with.

    Returns:
        Float32 `[B, R]` by name: the metric of every rule between iteration r and the one before (not a number at the
        first), and under `to_full` the mean squared difference between the actions at r and at full depth.
    """
    criteria = {name: make_criterion(StopRule(name)) for name in rules()}
    nothing_B = latents_BKD.new_full((len(latents_BKD),), torch.nan, dtype=torch.float32)
    metrics: dict[str, list[Tensor]] = {name: [] for name in criteria}
    answers: list[Tensor] = []
    previous: Look | None = None
    for _ in range(depth):
        latents_BKD = head.core(latents_BKD, conditioning)
        current = Look(latents_BKD, head.coda(latents_BKD, conditioning))
        for name, criterion in criteria.items():
            metrics[name].append(nothing_B if previous is None else criterion.measure(previous, current))
        assert current.actions is not None
        answers.append(current.actions.float())
        previous = current
    actions_BRKA = torch.stack(answers, dim=1)
    to_full_BR = (actions_BRKA - actions_BRKA[:, -1:]).square().mean(dim=(2, 3))
    return {name: torch.stack(values, dim=1) for name, values in metrics.items()} | {TO_FULL: to_full_BR}
