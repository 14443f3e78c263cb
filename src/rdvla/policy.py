"""The policy interface, and how to ask it for a decision.

A policy decides (`infer`, `infer_batch`) and forgets (`reset`, between episodes). A network, a scripted expert and a
remote server all look like this, so evaluation, serving and the control loop know nothing about models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Literal, Protocol

import numpy as np

from rdvla.errors import ConfigError, suggest
from rdvla.stops import StopRule, is_number
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


WarmStart = Literal["noise", "half", "end"]

WARM_STARTS: Mapping[WarmStart, str] = {
    "noise": "at random, as trained",
    "half": "where the decision before was after half of its iterations",
    "end": "where the decision before ended",
}
"""Where the scratchpad of a decision begins, with a sentence for people."""


DISAGREEMENT = "disagreement"
"""The signal of how far a decision is from what the one before it still planned for the same control steps: the mean
squared difference of commands. `rdvla.execution.Executor` adds it where a plan was left."""
ALARM = "alarm"
"""The signal (`rdvla.types.ActionChunk.signals`) of a policy with an alarm: raised above 1."""


@dataclass(frozen=True)
class Alarm:
    """When an episode, or a stage of one, takes longer than successful ones do (`rdvla calibrate --alarm`).

    Attributes:
        steps: control steps after which the alarm is raised, at least 1.
        alpha: share of successful episodes that were to raise it at most.
        episodes: how many successful ones it was calibrated on.
    """

    steps: int
    alpha: float
    episodes: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.episodes < 1 or not 0 < self.alpha < 1:
            raise ConfigError(f"an alarm needs steps and episodes of at least 1 and an alpha in 0..1, found {self}.")

    def level(self, step: int) -> float:
        """Return the signal at control step `step` (from 0): above 1 the alarm is raised."""
        return step / self.steps


@dataclass(frozen=True)
class Ask:
    """How one decision is wanted.

    Attributes:
        stop: when to stop iterating; None takes the policy's default.
        seed: fixes the random initial scratchpad; None draws one.
        budget_ms: stop iterating when this much time has passed; None means no limit.
        warm_start: where the scratchpad begins, a name of `WARM_STARTS`; all but `noise` need the carry of the
            decision before, and begin at random without one.
        carry: what the decision before returned as `ActionChunk.carry`. None after a new episode has begun.
        trace_depth: go on to this many iterations after the decision, for `ActionChunk.trace`; None does not.
        step: control steps since the episode or its stage began, for the policy's alarm; None if nobody counts.

    Raises:
        ConfigError: a rule that is none, a seed or a step that is no whole number of at least 0, a budget that is not
            positive, a trace of fewer than two iterations, an unknown warm start, or a carry for a start from noise.
    """

    stop: StopRule | None = None
    seed: int | None = None
    budget_ms: float | None = None
    trace_depth: int | None = None
    warm_start: WarmStart = "noise"
    carry: bytes | None = field(default=None, repr=False)
    step: int | None = None

    def __post_init__(self) -> None:
        if self.stop is not None and not isinstance(self.stop, StopRule):
            raise ConfigError(f"stop must be a StopRule, e.g. StopRule('action_mse', 1e-4), found {self.stop!r:.60}.")
        if self.budget_ms is not None and not (is_number(self.budget_ms) and self.budget_ms > 0):
            raise ConfigError(f"budget_ms must be a positive number, found {self.budget_ms!r:.60}.")
        if self.trace_depth is not None and not (_counts(self.trace_depth) and self.trace_depth >= 2):
            raise ConfigError(f"trace_depth must be at least 2 iterations, found {self.trace_depth!r:.60}.")
        if not isinstance(self.warm_start, str) or self.warm_start not in WARM_STARTS:
            name = str(self.warm_start)[:40]
            raise ConfigError(f"unknown warm start '{name}'.{suggest(name, WARM_STARTS)}")
        if self.carry is not None and self.warm_start == "noise":
            raise ConfigError("a carry is of no use to a start from noise; drop it, or say warm_start='half' or 'end'.")
        for name in ("seed", "step"):
            value = getattr(self, name)
            if value is not None and not _counts(value):
                raise ConfigError(f"{name} must be a whole number of at least 0, found {value!r:.60}.")

    @property
    def manner(self) -> str:
        """Return in words what is not usual beside the stopping rule, e.g. `50 ms, half`; empty if nothing is."""
        budget = "" if self.budget_ms is None else f"{self.budget_ms:g} ms"
        warm = "" if self.warm_start == "noise" else f"{self.warm_start} start"
        return ", ".join(part for part in (budget, warm) if part)

    @property
    def shared(self) -> "Ask":
        """Everything but seed, carry and step: decisions that agree in this can be made together."""
        return replace(self, seed=None, carry=None, step=None)


def _counts(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


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
            CarryError: the ask's carry is damaged, or another policy's.
        """
        ...

    def infer_batch(self, observations: Sequence[Observation], asks: Sequence[Ask]) -> list[ActionChunk]:
        """Decide for several observations, each as its ask says; one by one unless the policy knows better.

        A class that names `Policy` as its base inherits this.

        Raises:
            ObservationError, CarryError: one of them is wrong; nothing is decided then.
        """
        return [self.infer(observation, ask) for observation, ask in zip(observations, asks, strict=True)]

    def reset(self) -> None:
        """Forget everything about the current episode."""
        ...


def decision_ask(ask: Ask, decision: int, carry: bytes | None = None, *, step: int | None = None) -> Ask:
    """Return the ask of an episode's `decision`-th decision.

    Args:
        ask: how decisions are wanted; its seed is the episode's (or None).
        decision: its number, from 0.
        carry: what the decision before returned; None for the first of an episode or a stage.
        step: control steps since the episode or the stage began; None if nobody counts.
    """
    seed = None if ask.seed is None else decision_seed(ask.seed, decision)
    return replace(ask, seed=seed, carry=carry, step=step)


def decision_seed(episode_seed: int, decision: int) -> int:
    """Return the scratchpad seed of the `decision`-th decision of an episode: distinct, reproducible, 63 bits."""
    return int(np.random.SeedSequence([episode_seed, decision]).generate_state(1, np.uint64)[0]) >> 1
