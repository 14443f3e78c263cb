"""What passes between rooms: an observation goes in, a chunk of actions comes out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rdvla.errors import ConfigError, ObservationError, RDVLAError

TO_FULL = "to_full"
"""Column of a trace: the mean squared difference between the action at an iteration and the one at full depth."""

GripperConvention = Literal["none", "open_is_negative", "open_is_positive"]


@dataclass(frozen=True)
class Observation:
    """One moment as a policy sees it.

    Attributes:
        images: camera name -> uint8 `[H, W, 3]`, RGB, upright, any size. The usual cameras are
            `primary` (third person) and `wrist`.
        state: float32 `[S]`, unnormalised. LIBERO: end-effector position (m, world frame, 3), orientation
            as axis-angle (rad, 3), the two gripper joints (m, 2).
        instruction: the task in words.

    Raises:
        ObservationError: an image is not uint8 `[H, W, 3]`, the state is not a finite vector, or the
            instruction is empty.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    instruction: str

    def __post_init__(self) -> None:
        for camera, image in self.images.items():
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
                found = getattr(image, "dtype", type(image).__name__)
                raise ObservationError(
                    f"images['{camera}'] must be a uint8 array, found {found}; pass pixel values 0..255 as uint8."
                )
            if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 1:
                raise ObservationError(
                    f"images['{camera}'] must have shape [H, W, 3] (RGB, channels last), found {list(image.shape)}."
                )
        state = numbers(self.state, "state", error=ObservationError).astype(np.float32)
        if state.ndim != 1:
            raise ObservationError(f"state must be a vector [S], found shape {list(state.shape)}.")
        if not np.isfinite(state).all():
            bad = np.flatnonzero(~np.isfinite(state)).tolist()
            raise ObservationError(
                f"state has non-finite values at {bad}: {state.tolist()}; check the robot's sensors."
            )
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise ObservationError(f"instruction must be a non-empty sentence, found {self.instruction!r}.")
        object.__setattr__(self, "state", state)


@dataclass(frozen=True)
class ActionChunk:
    """What a policy decided.

    Attributes:
        actions: float32 `[chunk_size, action_dim]` in the environment's own convention, ready to execute.
        num_recurrences: how many times the recurrent core was applied (0 for a policy without one).
        convergence: the stopping rule's metric at each check, oldest first; empty under a fixed depth.
        n_action_steps: how many of the actions to execute before asking again, or None for "the caller's choice".
        timings: milliseconds by stage (`encode`, `recurrence`, `total`, ...).
        out_of_time: the time budget ended the recurrence, so `num_recurrences` is how many iterations it bought.
        signals: whatever else is known about the decision, by name. A number that a head puts here reaches the reply of
            a server, the record of an episode, the report and the live page.
        opening: how far open the gripper is meant to be, float32 `[chunk_size]`, 0 closed to 1 open, before `actions`
            rounds it; None if nothing is rounded, or it is not known.
        trace: what every stopping rule would have seen at iteration 1, 2, ... to full depth: float32 `[depth]` by rule
            and under `to_full` (see `rdvla.model.trace`). Empty unless it was asked for.
        carry: what the next decision of the episode may begin with (`rdvla.policy.Ask.carry`), for the policy alone to
            read; None if nothing was asked for, or is worth it.
    """

    actions: NDArray[np.float32]
    num_recurrences: int = 0
    convergence: tuple[float, ...] = ()
    n_action_steps: int | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    out_of_time: bool = False
    signals: Mapping[str, float] = field(default_factory=dict)
    opening: NDArray[np.float32] | None = None
    trace: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    carry: bytes | None = field(default=None, repr=False)

    def to_wire(self) -> dict[str, Any]:
        """Return everything as plain values, `actions` as a contiguous float32 array; `from_wire` reads them."""
        values = {
            "actions": np.ascontiguousarray(self.actions, dtype=np.float32),
            "num_recurrences": int(self.num_recurrences),
            "convergence": [float(value) for value in self.convergence],
            "n_action_steps": self.n_action_steps,
            "out_of_time": self.out_of_time,
            "policy_timing": {name: float(value) for name, value in self.timings.items()},
        }
        further = {
            "signals": {name: float(value) for name, value in self.signals.items()},
            "opening": [] if self.opening is None else self.opening.tolist(),
            "trace": {name: column.tolist() for name, column in self.trace.items()},
            "carry": self.carry,
        }
        return values | {key: value for key, value in further.items() if value}

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_wire` returned; everything but the actions may be absent, other keys are ignored.

        Raises:
            ValueError, TypeError: a value of the wrong type, length or range.
        """
        actions = np.array(values["actions"], dtype=np.float32)
        opening = np.array(values["opening"], np.float32) if "opening" in values else None
        if opening is not None and opening.shape != actions.shape[:1]:
            raise ValueError(f"opening has shape {opening.shape} for {len(actions)} actions")
        timings = {str(name): float(value) for name, value in dict(values.get("policy_timing", {})).items()}
        if not all(0 <= value < math.inf for value in timings.values()):
            raise ValueError(f"policy_timing must be milliseconds of at least 0, found {timings}")
        iterations = _whole(values, "num_recurrences", 0) or 0
        steps, carry = _whole(values, "n_action_steps", 1), values.get("carry")
        if carry is not None and not isinstance(carry, bytes):
            raise TypeError(f"a carry must be bytes, found {type(carry).__name__}")
        return cls(
            actions=actions,
            num_recurrences=iterations,
            convergence=tuple(float(value) for value in values.get("convergence", ())),
            n_action_steps=steps,
            timings=timings,
            out_of_time=bool(values.get("out_of_time", False)),
            signals={str(name): float(value) for name, value in dict(values.get("signals", {})).items()},
            opening=opening,
            trace={str(name): np.array(column, np.float32) for name, column in dict(values.get("trace", {})).items()},
            carry=carry,
        )


def _whole(values: Mapping[str, Any], name: str, least: int) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, found {value!r}")
    return int(value)


@dataclass(frozen=True)
class ActionConvention:
    """How actions in training space relate to the environment's.

    In training space a gripper is 1 when open and 0 when closed (as the OpenVLA line trains it).

    Attributes:
        gripper: what the environment expects in the last dimension: `open_is_negative` (LIBERO: -1 open,
            +1 close), `open_is_positive` (CALVIN: +1 open, -1 close) or `none` (no gripper to convert:
            every dimension passes through).
    """

    gripper: GripperConvention = "none"

    def to_env(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map unnormalised predictions `[..., A]` (gripper 0 closed .. 1 open) to env actions (gripper -1 or +1)."""
        if self.gripper == "none":
            return actions
        actions = actions.copy()
        opening = np.where(actions[..., -1] > 0.5, 1.0, -1.0)
        actions[..., -1] = -opening if self.gripper == "open_is_negative" else opening
        return actions

    def from_env(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map recorded env actions `[..., A]` to training space: the gripper becomes 1 open, 0 closed."""
        if self.gripper == "none":
            return actions
        actions = actions.copy()
        closing = np.clip(actions[..., -1], 0.0, 1.0)
        actions[..., -1] = 1.0 - closing if self.gripper == "open_is_negative" else closing
        return actions


def numbers(values: ArrayLike, name: str, *, error: type[RDVLAError] = ConfigError) -> NDArray[Any]:
    """Return an array of real numbers.

    Args:
        values: any shape.
        name: of the field, for the message.
        error: what to raise.

    Raises:
        ConfigError: (or `error`) it holds something else, or rows of different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.array("")
    if array.dtype.kind not in "fiu":
        raise error(f"{name} must hold numbers, found {values!r:.60}.")
    return array


def finite_vector(values: ArrayLike, name: str, size: int) -> NDArray[Any]:
    """Return `[size]` finite numbers.

    Raises:
        ConfigError: they are not, named `name`.
    """
    vector = numbers(values, name)
    if vector.shape != (size,):
        raise ConfigError(f"{name} must have shape [{size}], found {list(vector.shape)}.")
    require_finite(vector, name)
    return vector


def require_finite(values: NDArray[Any], name: str) -> None:
    """Make sure that an array holds finite numbers.

    Raises:
        ConfigError: it does not, named `name`.
    """
    if not np.isfinite(values).all():
        raise ConfigError(f"{name} has non-finite values: {values.tolist()}.")
