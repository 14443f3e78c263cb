"""Robots as policies, datasets and films see them: cameras, state, actions, gripper and control rate, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rdvla.errors import ConfigError
from rdvla.types import GripperConvention, finite_vector


@dataclass(frozen=True)
class Embodiment:
    """One robot with its cameras.

    Attributes:
        robot_type: the robot's name, as LeRobot datasets have it.
        control_hz: control steps per second.
        cameras: name in observations -> usual (height, width) in pixels, third person first.
        state_names: what each entry of the state is.
        action_names: what each entry of an action is; `delta_...` moves by so much, anything else is where to go.
        gripper: what the environment expects in the last entry of an action.
        gripper_has_two_values: it takes -1 and +1 and nothing between.
    """

    robot_type: str
    control_hz: int
    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    gripper: GripperConvention
    gripper_has_two_values: bool = False

    @property
    def state_dim(self) -> int:
        """Length of the state vector."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """Length of one action."""
        return len(self.action_names)

    def takes_gripper(self, convention: GripperConvention) -> bool:
        """Whether actions with this gripper convention fit: the robot's own, or `none` (any commands as numbers)."""
        return convention == self.gripper or (convention == "none" and not self.gripper_has_two_values)

    def with_pictures(self, camera_size: int | None) -> "Embodiment":
        """Return the same robot, every camera `camera_size` pixels high and wide; None leaves them as they are.

        Raises:
            ConfigError: no whole number of at least 1.
        """
        if camera_size is None:
            return self
        if isinstance(camera_size, bool) or not isinstance(camera_size, int) or camera_size < 1:
            raise ConfigError(f"camera_size = {camera_size!r} must be a number of pixels, at least 1.")
        return replace(self, cameras=dict.fromkeys(self.cameras, (camera_size, camera_size)))

    def check_action(self, action: ArrayLike) -> NDArray[np.floating[Any]]:
        """Return `action`, which must be `[action_dim]` finite numbers.

        Raises:
            ConfigError: it is not.
        """
        return finite_vector(action, "action", self.action_dim)

    def stand_still(self, before: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return the action that lets the robot stand still after the action `before`, `[action_dim]`.

        Deltas are zero, everything else stays as commanded. At the start (None) the gripper is open.

        Raises:
            ConfigError: an action says where to go, and nothing has been commanded yet.
        """
        deltas = np.array([name.startswith("delta_") for name in self.action_names])
        if before is None:
            opened = {"open_is_negative": -1.0, "open_is_positive": 1.0}.get(self.gripper)
            if not deltas[: None if opened is None else -1].all():
                raise ConfigError(f"a {self.robot_type} that is told where to go cannot wait for its first action.")
            before = np.full(self.action_dim, 0.0 if opened is None else opened, np.float32)
        return np.where(deltas, np.float32(0), before).astype(np.float32)

    def __str__(self) -> str:
        cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in self.cameras.items())
        return f"cameras {cameras}; state {self.state_dim}; action {self.action_dim}"


LIBERO = Embodiment(
    robot_type="panda",
    control_hz=20,
    cameras={"primary": (256, 256), "wrist": (256, 256)},
    state_names=("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"),
    action_names=("delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz", "gripper"),
    gripper="open_is_negative",
)
"""LIBERO's Panda. State: m and rad, world frame. Actions: deltas in [-1, 1], gripper -1 open, +1 close."""

CALVIN = Embodiment(
    robot_type="panda",
    control_hz=30,
    cameras={"primary": (200, 200), "wrist": (84, 84)},
    state_names=("x", "y", "z", "euler_x", "euler_y", "euler_z", "gripper_width", "gripper_action"),
    action_names=LIBERO.action_names,
    gripper="open_is_positive",
    gripper_has_two_values=True,
)
"""CALVIN's Panda, with the part of its state that the published policies see. Relative actions; gripper +1 open."""
