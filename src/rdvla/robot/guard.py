"""The last word before the motors: every command is finite, within limits, and not a leap; or it is replaced."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError
from rdvla.types import numbers

InterventionKind = Literal["non_finite", "clipped", "rate_limited", "held", "stopped"]
MissRule = Literal["hold", "stop"]
KEPT = 10_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActionLimits:
    """What the robot may be told, per dimension of the action.

    Attributes:
        low: float32 `[A]`, smallest value.
        high: float32 `[A]`, largest value.
        max_change: float32 `[A]`, largest change from one control step to the next; None means no limit, an
            infinite entry (a gripper's, say) none for that dimension.

    Raises:
        ConfigError: not numbers, shapes that differ, bounds that are not finite or in the wrong order, a change not
            above 0.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    max_change: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for field in ("low", "high", "max_change"):
            value = getattr(self, field)
            if value is not None or field != "max_change":
                object.__setattr__(self, field, numbers(value, field).astype(np.float32))
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise ConfigError(f"low {self.low.shape} and high {self.high.shape} must be vectors of one length.")
        if not np.isfinite([self.low, self.high]).all() or (self.low > self.high).any():
            raise ConfigError(f"low {self.low.tolist()} must be finite and at most high {self.high.tolist()}.")
        change = self.max_change
        if change is not None and (change.shape != self.low.shape or np.isnan(change).any() or (change <= 0).any()):
            raise ConfigError(f"max_change {change.tolist()} must have {len(self.low)} values above 0.")


@dataclass(frozen=True)
class Intervention:
    """One command that was not the policy's, or not quite.

    Attributes:
        step: control step of the episode.
        kind: `non_finite`, `clipped`, `rate_limited`: what was wrong with the action; `held`, `stopped`: what
            was sent because there was no (usable) action.
        detail: in words, with the values.
    """

    step: int
    kind: InterventionKind
    detail: str


class ActionGuard:
    """Turns planned actions, or their absence, into commands that are safe to execute.

    Without a usable action it repeats the last command (`hold`, for position control: stand still) or sends
    `stop_action` (`stop`, for velocity or delta control: repeating would go on moving). After `max_holds` repeats
    in a row `hold` goes to `stop_action` too, by `max_change` a step. The next usable action ends this. In the
    dimensions `keep` a stop repeats the last command: a gripper does not drop what it holds.

    Attributes:
        interventions: the last 10,000 of this guard's interventions, oldest first; each is also logged.
    """

    def __init__(
        self,
        limits: ActionLimits,
        *,
        stop_action: NDArray[np.float32],
        keep: Sequence[int] = (),
        on_miss: MissRule = "stop",
        max_holds: int = 10,
    ) -> None:
        """Guard commands of the shape of `limits.low`.

        Raises:
            ConfigError: a stop action of another shape or outside the limits, a dimension to keep that it has not, an
                unknown rule, a negative count.
        """
        stop_action = numbers(stop_action, "stop_action").astype(np.float32)
        inside = stop_action.shape == limits.low.shape and bool(
            ((stop_action >= limits.low) & (stop_action <= limits.high)).all()
        )
        if not inside:
            raise ConfigError(f"stop_action {stop_action.tolist()} must lie within the limits.")
        size = len(stop_action)
        if not all(isinstance(dimension, int | np.integer) and -size <= dimension < size for dimension in keep):
            raise ConfigError(f"keep {list(keep)} must be dimensions of an action of {size} values.")
        if on_miss not in ("hold", "stop") or max_holds < 0:
            raise ConfigError(f"on_miss must be 'hold' or 'stop' and max_holds >= 0; found {on_miss!r}, {max_holds}.")
        self.interventions: deque[Intervention] = deque(maxlen=KEPT)
        self._limits = limits
        self._stop_action = stop_action
        self._keep = list(keep)
        self._on_miss = on_miss
        self._max_holds = max_holds
        self._last: NDArray[np.float32] | None = None
        self._holds = 0

    def reset(self) -> None:
        """Start an episode: there is no last command to hold or to change slowly from."""
        self._last = None
        self._holds = 0

    def check(self, step: int, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the command for `step` given the planned `action` `[A]`."""
        action = np.asarray(action, dtype=np.float32)
        limits = self._limits
        if action.shape != limits.low.shape or not np.isfinite(action).all():
            self._note(step, "non_finite", f"the action {action.tolist()} is not {len(limits.low)} finite numbers")
            return self.miss(step, "unusable action")
        command = np.clip(action, limits.low, limits.high)
        if not np.array_equal(command, action):
            self._note(step, "clipped", f"{action.tolist()} to {command.tolist()}")
        slowed = self._slowed(command)
        if not np.array_equal(slowed, command):
            self._note(step, "rate_limited", f"{command.tolist()} to {slowed.tolist()}")
        command = slowed
        self._holds = 0
        self._last = command
        return command.copy()

    def miss(self, step: int, reason: str, *, wanted: bool = False) -> NDArray[np.float32]:
        """Return the command for a `step` without a usable action; `wanted`: to stand still, however long."""
        if self._on_miss == "hold" and self._last is not None and (wanted or self._holds < self._max_holds):
            self._holds += not wanted
            count = "" if wanted else f" ({self._holds} of {self._max_holds})"
            self._note(step, "held", f"{reason}; repeating the last command{count}")
            return self._last.copy()
        self._note(step, "stopped", reason)
        command = self._stop_action.copy()
        if self._last is not None:
            if self._on_miss == "hold":
                command = self._slowed(command)
            command[self._keep] = self._last[self._keep]
        self._last = command
        return command.copy()

    def _slowed(self, command: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is nearest to `command` within `max_change` of the last one."""
        change = self._limits.max_change
        if change is None or self._last is None:
            return command
        return np.clip(command, self._last - change, self._last + change)

    def _note(self, step: int, kind: InterventionKind, detail: str) -> None:
        self.interventions.append(Intervention(step, kind, detail))
        _log.warning("step %d: %s: %s", step, kind, detail)
