"""Robots as policies, datasets and films see them: cameras, state, actions, gripper and control rate, as data."""

from collections.abc import Mapping
from dataclasses import dataclass

from rdvla.types import GripperConvention


@dataclass(frozen=True)
class Embodiment:
    """One robot with its cameras.

    Attributes:
        robot_type: the robot's name, as LeRobot datasets have it.
        control_hz: control steps per second.
        cameras: name in observations -> usual (height, width) in pixels, third person first.
        state_names: what each entry of the state is.
        action_names: what each entry of an action is.
        gripper: what the environment expects in the last entry of an action.
    """

    robot_type: str
    control_hz: int
    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    gripper: GripperConvention

    @property
    def state_dim(self) -> int:
        """Length of the state vector."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """Length of one action."""
        return len(self.action_names)

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
)
"""CALVIN's Panda, with the part of its state that the published policies see. Relative actions; gripper +1 open."""
