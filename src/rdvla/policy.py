"""The policy interface, and how to ask it for a decision.

A policy has two methods: `infer` one decision, `reset` between episodes. A network, a scripted expert and a
remote server all look like this, so evaluation, serving and the control loop know nothing about models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

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
        extra: anything else worth recording (checkpoint, versions, default stop rule); JSON values only.
    """

    name: str
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    chunk_size: int
    extra: Mapping[str, Any]


class Policy(Protocol):
    """Anything that decides."""

    @property
    def metadata(self) -> PolicyMetadata:
        """What this policy needs and returns."""
        ...

    def infer(
        self,
        observation: Observation,
        *,
        stop: StopRule | None = None,
        seed: int | None = None,
        budget_ms: float | None = None,
    ) -> ActionChunk:
        """Decide once.

        Args:
            observation: what the robot sees now.
            stop: when to stop iterating; None takes the policy's default.
            seed: fixes the random initial scratchpad; None draws one.
            budget_ms: stop iterating when this much time has passed; None means no limit.

        Raises:
            ObservationError: a camera is missing or the state has another size.
        """
        ...

    def reset(self) -> None:
        """Forget everything about the current episode."""
        ...


def decision_seed(episode_seed: int, decision: int) -> int:
    """Return the scratchpad seed of the `decision`-th decision of an episode: distinct, reproducible, 63 bits."""
    return int(np.random.SeedSequence([episode_seed, decision]).generate_state(1, np.uint64)[0] >> 1)
