"""The policy interface, and how to ask it for a decision.

A policy has two methods: `infer` one decision, `reset` between episodes. A network, a scripted expert and a
remote server all look like this, so evaluation, serving and the control loop know nothing about models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rdvla.horizons import Horizon
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


class ChunkExecutor:
    """Executes chunks: asks the policy only when the actions at hand are used up.

    The observation is passed as a function, called only when the policy decides. An environment that renders
    on demand therefore renders once per decision instead of once per step.
    """

    def __init__(
        self, policy: Policy, horizon: Horizon, *, stop: StopRule | None = None, seed: int | None = None
    ) -> None:
        """Execute `policy`'s chunks up to `horizon`; decision k of an episode is seeded with (`seed`, k)."""
        self.policy = policy
        self.horizon = horizon
        self.stop = stop
        self.seed = seed
        self.decisions: list[ActionChunk] = []
        self._pending: list[NDArray[np.float32]] = []

    def reset(self, seed: int | None = None) -> None:
        """Start an episode, drawing scratchpads from `seed`."""
        self.seed = seed
        self.decisions = []
        self.next_stage()

    def next_stage(self) -> None:
        """Go on with another instruction: drop the actions at hand; decisions are counted on."""
        self._pending = []
        self.horizon.reset()
        self.policy.reset()

    def act(self, observe: Callable[[], Observation]) -> NDArray[np.float32]:
        """Return the next action `[action_dim]`, deciding anew (and calling `observe`) if none is pending."""
        if not self._pending:
            seed = None if self.seed is None else decision_seed(self.seed, len(self.decisions))
            chunk = self.policy.infer(observe(), stop=self.stop, seed=seed)
            self.decisions.append(chunk)
            n_steps = self.horizon.steps(chunk.num_recurrences, len(chunk.actions))
            self._pending = list(chunk.actions[:n_steps])
        return self._pending.pop(0)


def decision_seed(episode_seed: int, decision: int) -> int:
    """Return the scratchpad seed of the `decision`-th decision of an episode: distinct, reproducible, 63 bits."""
    return int(np.random.SeedSequence([episode_seed, decision]).generate_state(1, np.uint64)[0] >> 1)
