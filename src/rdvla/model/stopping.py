"""When to stop thinking: small objects that compare two consecutive looks at the recurrence.

Each rule decides per sample. `whole_batch=True` is the published behaviour for comparison: one number for the batch.
"""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rdvla.stops import StopRule


@dataclass(frozen=True)
class Look:
    """The recurrence at one check.

    Attributes:
        latents: scratchpad `[B, K, D]`.
        actions: normalised actions `[B, K, A]`, or None if the rule does not ask for them.
    """

    latents: Tensor
    actions: Tensor | None

    def select(self, rows: Tensor) -> "Look":
        """Keep the samples `rows` (int64 indices)."""
        return Look(self.latents[rows], None if self.actions is None else self.actions[rows])


class StoppingCriterion(ABC):
    """Compares consecutive looks and says which samples have converged."""

    needs_actions = True

    def __init__(self, threshold: float, *, whole_batch: bool = False) -> None:
        """Stop when the metric passes `threshold`; `whole_batch` judges all samples together."""
        self.threshold = threshold
        self.whole_batch = whole_batch

    def measure(self, previous: Look, current: Look) -> Tensor:
        """Return the metric `float32 [B]`; it falls as the recurrence converges."""
        return self.metric(self._rows(previous), self._rows(current)).expand(len(current.latents))

    def _rows(self, look: Look) -> Tensor:
        tensor = look.actions if self.needs_actions else look.latents
        assert tensor is not None
        return tensor.float().reshape(1 if self.whole_batch else len(tensor), -1)

    @abstractmethod
    def metric(self, before: Tensor, after: Tensor) -> Tensor:
        """Return one number per row of `[rows, numbers]`."""

    def passed(self, value: Tensor) -> Tensor:
        """Return whether the metric says "converged", wherever it lies."""
        return value < self.threshold


class ActionL2(StoppingCriterion):
    """Squared L2 distance of consecutive predicted chunks (RD-VLA paper, delta = 1e-3)."""

    def metric(self, before: Tensor, after: Tensor) -> Tensor:
        """Sum of squared differences."""
        return (after - before).square().sum(dim=1)


class ActionMSE(StoppingCriterion):
    """Mean squared difference of consecutive predicted chunks (the released code's `kl_divergence`)."""

    def metric(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean of squared differences."""
        return (after - before).square().mean(dim=1)


class CosineDistance(StoppingCriterion):
    """1 - cosine similarity of consecutive predicted chunks; the rule's threshold is on the similarity."""

    def metric(self, before: Tensor, after: Tensor) -> Tensor:
        """One minus the cosine."""
        return 1 - F.cosine_similarity(before, after, dim=1)

    def passed(self, value: Tensor) -> Tensor:
        """Compare the similarity itself with the threshold."""
        return 1 - value > self.threshold


class LatentChange(StoppingCriterion):
    """Relative L2 change of the scratchpad; needs no Coda."""

    needs_actions = False

    def metric(self, before: Tensor, after: Tensor) -> Tensor:
        """||after - before|| / ||after||."""
        return (after - before).norm(dim=1) / after.norm(dim=1)


class LatentMSE(StoppingCriterion):
    """Mean squared change of the scratchpad; needs no Coda."""

    needs_actions = False

    def metric(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean of squared differences."""
        return (after - before).square().mean(dim=1)


class FixedDepth(StoppingCriterion):
    """Never converges: the maximum depth decides."""

    needs_actions = False

    def __init__(self) -> None:
        """No threshold: nothing is compared."""
        super().__init__(threshold=0.0)

    def metric(self, before: Tensor, after: Tensor) -> Tensor:
        """Nothing is measured."""
        return torch.full((len(after),), torch.inf, device=after.device)


def make_criterion(rule: StopRule, *, whole_batch: bool = False) -> StoppingCriterion:
    """Build the criterion that `rule` names."""
    spec = rule.spec
    if spec is None:
        return FixedDepth()
    module, _, name = spec.criterion.partition(":")
    kind: type[StoppingCriterion] = getattr(importlib.import_module(module), name)
    assert rule.threshold is not None
    return kind(rule.threshold, whole_batch=whole_batch)
