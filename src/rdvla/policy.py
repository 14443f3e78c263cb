"""The policy interface, and how to ask it for a decision.

A policy decides (`infer`, `infer_batch`) and forgets (`reset`, between episodes). A network, a scripted expert and a
remote server all look like this, so evaluation, serving and the control loop know nothing about models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rdvla.errors import ConfigError
from rdvla.stops import StopRule
from rdvla.types import ActionChunk, Observation


@dataclass(frozen=True)
class PolicyMetadata:
    """What a client must know before it asks.

    Attributes:
        name: for people.
        cameras: the image keys that `infer` needs, in order.
        state_dim: length of the state vector.
        action_dim: length of one action.
        chunk_size: actions per decision.
        extra: anything else worth recording (checkpoint, versions, default stop rule); JSON values only. A server adds
            its `fingerprint`.
    """

    name: str
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    chunk_size: int
    extra: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """What a server says it serves (checkpoint, default rule, version of the code); empty for a local policy."""
        return str(self.extra.get("fingerprint", ""))


@dataclass(frozen=True)
class Ask:
    """How one decision is wanted.

    Attributes:
        stop: when to stop iterating; None takes the policy's default.
        seed: fixes the random initial scratchpad; None draws one.
        budget_ms: stop iterating when this much time has passed; None means no limit.
        trace_depth: go on to this many iterations after the decision, for `ActionChunk.trace`; None does not.

    Raises:
        ConfigError: a budget that is not positive, or a trace of fewer than two iterations.
    """

    stop: StopRule | None = None
    seed: int | None = None
    budget_ms: float | None = None
    trace_depth: int | None = None

    def __post_init__(self) -> None:
        if self.budget_ms is not None and not self.budget_ms > 0:
            raise ConfigError(f"budget_ms must be positive, found {self.budget_ms!r}.")
        if self.trace_depth is not None and self.trace_depth < 2:
            raise ConfigError(f"trace_depth must be at least 2 iterations, found {self.trace_depth!r}.")

    @property
    def manner(self) -> str:
        """Return in words what is not usual beside the stopping rule, e.g. `50 ms`; empty if nothing is."""
        return "" if self.budget_ms is None else f"{self.budget_ms:g} ms"

    @property
    def shared(self) -> "Ask":
        """Everything but the seed: decisions that agree in this can be made together."""
        return replace(self, seed=None)


PLAIN = Ask()
"""The policy's own ways."""


class Policy(Protocol):
    """Anything that decides."""

    @property
    def metadata(self) -> PolicyMetadata:
        """What this policy needs and returns."""
        ...

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        """Decide once about what the robot sees now.

        Raises:
            ObservationError: a camera is missing or the state has another size.
        """
        ...

    def infer_batch(self, observations: Sequence[Observation], asks: Sequence[Ask]) -> list[ActionChunk]:
        """Decide for several observations, each as its ask says; one by one unless the policy knows better.

        A class that names `Policy` as its base inherits this.

        Raises:
            ObservationError: one of them is wrong; nothing is decided then.
        """
        return [self.infer(observation, ask) for observation, ask in zip(observations, asks, strict=True)]

    def reset(self) -> None:
        """Forget everything about the current episode."""
        ...


def decision_ask(ask: Ask, decision: int) -> Ask:
    """Return the ask of an episode's `decision`-th decision, where `ask.seed` is the episode's (or None)."""
    return ask if ask.seed is None else replace(ask, seed=decision_seed(ask.seed, decision))


def decision_seed(episode_seed: int, decision: int) -> int:
    """Return the scratchpad seed of the `decision`-th decision of an episode: distinct, reproducible, 63 bits."""
    return int(np.random.SeedSequence([episode_seed, decision]).generate_state(1, np.uint64)[0] >> 1)
