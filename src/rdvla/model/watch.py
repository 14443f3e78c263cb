"""How a decision looks at its samples: what a stopping rule compares, and how often that asks the Coda.

A `Watch` asks it at every check, if the rule reads actions. A `DeferringWatch` leaves it alone while the scratchpad
still changes too much for the rule to stop; once it changes little enough, the scratchpads of this check and the one
before are decoded in one call, and from there on the rule is asked at every check.

Shape suffixes: B samples that still think, K action tokens, D width.
"""

from collections.abc import Callable
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from rdvla.model.budget import Timer
from rdvla.model.stopping import LatentChange, Look, StoppingCriterion
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

    def both(self, before_BKD: Tensor, after_BKD: Tensor, conditioning: Given_contra) -> tuple[Tensor, Tensor]:
        """Decode two scratchpads of every sample in one call of the Coda."""
        ...


class Watch(Generic[Given]):
    """Looks at the samples that still think; knows whose actions are decoded already.

    Attributes:
        codas: int64 `[B]` how often the Coda was asked about each sample.
    """

    def __init__(self, head: Recurrence[Given], criterion: StoppingCriterion, timer: Timer, batch: int) -> None:
        """Watch `batch` samples for `criterion`; decodings are charged to `timer`."""
        self.codas = torch.zeros(batch, dtype=torch.long)
        self._head, self._criterion, self._timer = head, criterion, timer
        self._seen: Look | None = None
        self._known = torch.zeros(batch, dtype=torch.bool)  # whose actions in `_seen` are decoded

    def look(self, latents_BKD: Tensor, conditioning: Given, *, may_stop: bool) -> tuple[Tensor, Tensor] | None:
        """Look once more. The host waits for the device once, not at all at the first look.

        Args:
            latents_BKD: scratchpads after this iteration.
            conditioning: of the same samples.
            may_stop: whether a sample may stop here at all.

        Returns:
            On the host, which samples were compared with the look before (bool `[B]`), and the criterion's metric
            (float32 `[B]`, infinite elsewhere); None if none was.
        """
        before, reads_actions = self._seen, self._criterion.needs_actions
        now = Look(latents_BKD, self._decode(latents_BKD, conditioning) if reads_actions else None)
        self._seen, self._known = now, torch.full_like(self._known, reads_actions)
        if before is None:
            return None
        return torch.ones_like(self._known), self._criterion.measure(before, now).cpu()

    def answers(self, latents_BKD: Tensor, conditioning: Given, rows: Tensor | None = None) -> Tensor:
        """Return the actions `[rows, K, A]` of some samples (None: all), decoded now unless they already were.

        Args:
            latents_BKD: the scratchpads now.
            conditioning: of the same samples.
            rows: samples that the last look has found to have converged; int64, on the host.
        """
        seen = None if self._seen is None or self._seen.latents is not latents_BKD else self._seen.actions
        if seen is None:
            return self._decode(latents_BKD, conditioning, rows)
        unknown = (~self._known).nonzero().flatten()
        if rows is None and len(unknown):
            seen = seen.index_copy(0, there(unknown, seen), self._decode(latents_BKD, conditioning, unknown))
        return seen if rows is None else seen[there(rows, seen)]

    def select(self, rows: Tensor) -> Tensor:
        """Keep the samples `rows` (int64, on the host) of the last look, and return their scratchpads."""
        assert self._seen is not None
        self.codas, self._known = self.codas[rows], self._known[rows]
        self._seen = self._seen.select(there(rows, self._seen.latents))
        return self._seen.latents

    def _decode(self, latents_BKD: Tensor, conditioning: Given, rows: Tensor | None = None) -> Tensor:
        """Ask the Coda about the samples `rows` (None: all)."""
        if rows is not None:
            latents_BKD, conditioning = _chosen(latents_BKD, conditioning, rows)
        actions = self._head.coda(latents_BKD, conditioning)
        self._timer.lap("decode")
        self.codas[slice(None) if rows is None else rows] += 1
        return actions


class DeferringWatch(Watch[Given]):
    """Asks the Coda about a sample only from where its scratchpad changes by less than a gate."""

    def __init__(
        self, head: Recurrence[Given], criterion: StoppingCriterion, timer: Timer, batch: int, gate: float
    ) -> None:
        """Open where the relative change of the scratchpad falls below `gate`."""
        super().__init__(head, criterion, timer, batch)
        self._gate = LatentChange(gate)

    def look(self, latents_BKD: Tensor, conditioning: Given, *, may_stop: bool) -> tuple[Tensor, Tensor] | None:
        """Look once more: at the scratchpads of samples whose gate is closed, at the actions of the others.

        The host waits once for the gates while one is closed, and once for the metric where one is open.
        """
        before, now = self._seen, Look(latents_BKD, None)
        self._seen = now
        if before is None or not may_stop:
            return None
        near = self._known
        if not near.all():
            near = near | self._gate.passed(self._gate.measure(before, now).cpu())
        if not near.any():
            return None
        rows, earlier, actions = self._decode_near(before, latents_BKD, conditioning, near)
        chosen = there(rows, latents_BKD)
        compared = self._criterion.measure(Look(before.latents[chosen], earlier), Look(latents_BKD[chosen], actions))
        metric = torch.full(near.shape, torch.inf).index_copy_(0, rows, compared.cpu())
        everyone = actions.new_zeros(len(near), *actions.shape[1:]).index_copy_(0, chosen, actions)
        self._seen, self._known = Look(latents_BKD, everyone), near
        return near, metric

    def _decode_near(
        self, before: Look, latents_BKD: Tensor, conditioning: Given, near: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return which samples are `near` (int64), their actions at the look before and now."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for which, opened in ((near & ~self._known, True), (self._known, False)):
            rows = which.nonzero().flatten()
            if not len(rows):
                continue
            chosen = there(rows, latents_BKD)
            if opened:
                earlier, actions = self._head.both(before.latents[chosen], *_chosen(latents_BKD, conditioning, rows))
                self._timer.lap("decode", 2)
                self.codas[rows] += 2
            else:
                assert before.actions is not None
                earlier, actions = before.actions[chosen], self._decode(latents_BKD, conditioning, rows)
            found.append((rows, earlier, actions))
        rows, earlier, actions = (torch.cat(parts) for parts in zip(*found, strict=True))
        return rows, earlier, actions


def there(rows: Tensor, like: Tensor) -> Tensor:
    """Return indices from the host on the device of `like`, without waiting for it."""
    return rows.to(like.device, non_blocking=True)


def _chosen(latents_BKD: Tensor, conditioning: Given, rows: Tensor) -> tuple[Tensor, Given]:
    if len(rows) == len(latents_BKD):
        return latents_BKD, conditioning
    chosen = there(rows, latents_BKD)
    return latents_BKD[chosen], conditioning.select(chosen)


def watch(
    head: Recurrence[Given], criterion: StoppingCriterion, rule: StopRule, timer: Timer, batch: int
) -> Watch[Given]:
    """Return what looks at `batch` samples as `rule` wants it."""
    if rule.defer is None:
        return Watch(head, criterion, timer, batch)
    return DeferringWatch(head, criterion, timer, batch, rule.defer)
