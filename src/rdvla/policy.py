"""The policy interface, and how to ask it for a decision.

A policy has two methods: `infer` one decision, `reset` between episodes. A network, a scripted expert and a
remote server all look like this, so evaluation, serving and the control loop know nothing about models.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, suggest
from rdvla.horizons import Horizon
from rdvla.types import ActionChunk, Observation

StopRuleName = Literal["fixed", "action_l2", "action_mse", "cosine", "latent"]

DEFAULT_THRESHOLDS: Mapping[str, float] = {"action_l2": 1e-3, "action_mse": 1e-3, "cosine": 0.999, "latent": 0.03}


@dataclass(frozen=True)
class StopRule:
    """When to stop thinking, as plain data; `rdvla.model.stopping` turns it into a criterion.

    Attributes:
        name: `fixed` (always `max_depth` iterations), `action_l2` (squared L2 distance of consecutive
            predicted chunks below the threshold: the paper's rule), `action_mse` (their mean squared
            difference: what the released code calls kl_divergence), `cosine` (their cosine similarity above
            the threshold), `latent` (relative change of the scratchpad below the threshold; no Coda needed).
        threshold: the rule's threshold; None takes the default of `DEFAULT_THRESHOLDS`.
        min_depth: never stop before this many iterations.
        max_depth: never go beyond this many iterations; for `fixed`, how many there are.
        check_every: evaluate the rule every n-th iteration.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """

    name: StopRuleName = "fixed"
    threshold: float | None = None
    min_depth: int = 1
    max_depth: int = 32
    check_every: int = 1

    def __post_init__(self) -> None:
        if self.name not in get_args(StopRuleName):
            raise ConfigError(f"unknown stopping rule '{self.name}'.{suggest(self.name, get_args(StopRuleName))}")
        for field in ("min_depth", "max_depth", "check_every"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field} must be a whole number of at least 1, found {value!r}.")
        if self.min_depth > self.max_depth:
            raise ConfigError(f"min_depth ({self.min_depth}) is greater than max_depth ({self.max_depth}).")
        if self.name == "fixed":
            if self.threshold is not None:
                raise ConfigError("the rule 'fixed' has no threshold; drop it or choose an adaptive rule.")
        elif self.threshold is None:
            object.__setattr__(self, "threshold", DEFAULT_THRESHOLDS[self.name])
        elif not np.isfinite(self.threshold) or self.threshold < 0:
            raise ConfigError(f"threshold must be a finite number of at least 0, found {self.threshold!r}.")

    @classmethod
    def fixed(cls, depth: int) -> "StopRule":
        """Return the rule that always runs `depth` iterations."""
        return cls(name="fixed", max_depth=depth)

    def __str__(self) -> str:
        if self.name == "fixed":
            return f"fixed({self.max_depth})"
        return f"{self.name}({self.threshold:g}, max {self.max_depth})"


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
