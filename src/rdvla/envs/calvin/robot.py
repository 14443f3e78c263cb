"""The arm: motors, inverse kinematics and what it senses. The order of calls decides the published numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rdvla.envs.calvin.assets import RobotConfig
from rdvla.errors import ConfigError
from rdvla.types import finite_vector, numbers, require_finite

ACTION_DIM = 7
OBS_DIM = 15

_POSITION_SCALE = 0.02
_ROTATION_SCALE = 0.05
_FINGER_VELOCITY = 1
_OPENING_SHARE = 1 / 100
_NULL_SPACE = 7
_WIDTH, _JOINTS = 6, slice(7, 14)


class Robot:
    """A Panda with long fingers on a white cylinder."""

    def __init__(self, client: Any, config: RobotConfig, data: Path) -> None:
        """Load it from the folder `data` into `client`, in its initial pose."""
        self._client = client
        self._config = config
        base = client.getQuaternionFromEuler(config.base_orientation)
        self.body: int = client.loadURDF(str(data / config.urdf), config.base_position, base, useFixedBase=True)
        self.base_body = self._add_base()
        left, right = config.finger_joints
        gear = client.createConstraint(
            self.body, left, self.body, right, client.JOINT_GEAR, [1, 0, 0], [0, 0, 0], [0, 0, 0]
        )
        client.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)
        self._degrees_of_freedom = client.computeDofCount(self.body)
        self._rest = [*config.initial_joints, config.finger_limits[1], config.finger_limits[1]]
        self.gripper_action = 1
        self.reset(None)

    def reset(self, obs: NDArray[np.float64] | None) -> None:
        """Put joints and fingers where an observation has them, at rest, and hold them there.

        The gripper's last action is kept, as the published simulator does.

        Args:
            obs: float64 `[15]`; None takes the initial pose, fingers open.
        """
        config = self._config
        joints = config.initial_joints if obs is None else obs[_JOINTS]
        finger = config.finger_limits[1] if obs is None else obs[_WIDTH] / 2
        for joint, angle in zip(config.arm_joints, joints, strict=True):
            self._client.resetJointState(self.body, joint, angle)
            self._hold(joint, angle, config.max_force, config.max_velocity)
        for joint in config.finger_joints:
            self._client.resetJointState(self.body, joint, finger)
            self._hold(joint, finger, config.gripper_force, _FINGER_VELOCITY)
        position, euler = self.tcp()
        self.target_position = np.array(position)
        self.target_euler = np.array(euler)

    def move_by(self, action: NDArray[np.floating[Any]]) -> None:
        """Move the commanded pose (not the measured one) and set the motors.

        Args:
            action: checked `[7]`: position in units of 2 cm, Euler angles in units of 0.05 rad, gripper. It is scaled
                in its own precision.
        """
        self.target_position += action[:3] * _POSITION_SCALE
        self.target_euler += action[3:6] * _ROTATION_SCALE
        quaternion = self._client.getQuaternionFromEuler(self.target_euler)
        self._move_to(self.target_position, quaternion, action[6])

    def move_to(self, position: NDArray[np.float64], orientation: NDArray[np.float64], gripper: float) -> None:
        """Set the motors for a pose; where later relative actions start from does not change.

        Args:
            position: `[3]` of the point between the fingertips, m, world frame.
            orientation: Euler xyz `[3]` or quaternion `[4]`.
            gripper: +1 opens, -1 closes.
        """
        if len(orientation) == 3:
            orientation = self._client.getQuaternionFromEuler(orientation)
        self._move_to(position, orientation, gripper)

    def tcp(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return position (m) and Euler angles (rad) of the point between the fingertips, world frame."""
        position, quaternion = self._client.getLinkState(self.body, self._config.tcp_link)[:2]
        return position, self._client.getEulerFromQuaternion(quaternion)

    def obs(self) -> NDArray[np.float64]:
        """Return float64 `[15]`: position, Euler angles, opening width (m), arm joints (rad), last gripper action."""
        position, euler = self.tcp()
        left, right = (self._joint(joint) for joint in self._config.finger_joints)
        joints = [self._joint(joint) for joint in self._config.arm_joints]
        return np.array([*position, *euler, left + right, *joints, self.gripper_action])

    def _move_to(self, position: Any, quaternion: Any, gripper: float) -> None:
        config, count = self._config, self._degrees_of_freedom
        joints = self._client.calculateInverseKinematics(
            self.body,
            config.tcp_link,
            position,
            quaternion,
            [-_NULL_SPACE] * count,
            [_NULL_SPACE] * count,
            [_NULL_SPACE] * count,
            self._rest,
        )
        angles = np.clip(joints[: len(config.arm_joints)], config.lower_limits, config.upper_limits)
        for joint, angle in zip(config.arm_joints, angles, strict=True):
            self._hold(joint, angle, config.max_force, config.max_velocity)
        self.gripper_action = 1 if gripper == 1 else -1
        closed, opened = config.finger_limits
        finger, force = closed, config.gripper_force
        if self.gripper_action == 1:
            finger, force = opened, config.gripper_force * _OPENING_SHARE
        for joint in config.finger_joints:
            self._hold(joint, finger, force, _FINGER_VELOCITY)

    def _hold(self, joint: int, target: float, force: float, velocity: float) -> None:
        self._client.setJointMotorControl2(
            self.body,
            joint,
            self._client.POSITION_CONTROL,
            targetPosition=target,
            force=force,
            maxVelocity=velocity,
        )

    def _joint(self, joint: int) -> float:
        value: float = self._client.getJointState(self.body, joint)[0]
        return value

    def _add_base(self) -> int:
        """Add the cylinder it stands on, which is only seen."""
        x, y, height = self._config.base_position
        yaw = self._config.base_orientation[2]
        shape = self._client.createVisualShape(
            self._client.GEOM_CYLINDER,
            rgbaColor=[1, 1, 1, 1],
            radius=0.13,
            length=height,
            visualFramePosition=[x - np.cos(yaw) * 0.05, y - np.sin(yaw) * 0.05, height / 2],
        )
        body: int = self._client.createMultiBody(baseVisualShapeIndex=shape)
        return body


def check_action(action: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return a relative action `[7]` as floating-point numbers (float32 stays float32).

    Raises:
        ConfigError: it has another shape, is not finite, or its gripper is neither -1 nor +1.
    """
    values = finite_vector(action, "action", ACTION_DIM)
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    check_gripper(values[-1])
    return values


def check_pose(position: ArrayLike, orientation: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return position `[3]` and orientation (Euler xyz `[3]` or quaternion `[4]`) as float64.

    Raises:
        ConfigError: they have other shapes or are not finite.
    """
    point = numbers(position, "position").astype(np.float64)
    turn = numbers(orientation, "orientation").astype(np.float64)
    if point.shape != (3,) or turn.shape not in ((3,), (4,)):
        raise ConfigError(
            f"a pose is a position [3] and an orientation, Euler [3] or quaternion [4]; found shapes "
            f"{list(point.shape)} and {list(turn.shape)}."
        )
    require_finite(point, "position")
    require_finite(turn, "orientation")
    return point, turn


def check_gripper(gripper: float) -> None:
    """Make sure that a gripper action is one.

    Raises:
        ConfigError: it is neither -1 nor +1.
    """
    if gripper not in (-1, 1):
        raise ConfigError(f"gripper = {gripper}: CALVIN takes +1 (open) or -1 (close) and nothing between.")
