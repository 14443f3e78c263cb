"""Proportional control of the end effector in LIBERO's action space."""

import numpy as np
from numpy.typing import NDArray

from rdvla.experts.libero.boxes import Array
from rdvla.experts.libero.grasps import closing_axis

OPEN, CLOSED = -1.0, 1.0
POSITION_STEP = 0.05  # m of commanded displacement per unit of action
ROTATION_STEP = 0.5  # rad of commanded rotation per unit of action
POSITION_GAIN = 2.5
ROTATION_GAIN = 2.0
MAX_SPEED = 0.9  # longest horizontal and vertical translation, in units of action: full speed saturates no axis
MAX_TURN = 0.9
CLIMB_SLACK = 0.03  # m below the target: the horizontal speed falls from here, to nothing at twice as much


def downward_rotation(yaw: float, tilt: float = 0.0) -> Array:
    """Return the rotation `[3, 3]` of a gripper that points down and closes along `closing_axis(yaw)`.

    Args:
        yaw: radians.
        tilt: radians by which it then leans, about its closing axis, to point towards (cos(yaw), sin(yaw)).
    """
    closing = np.array([*closing_axis(yaw), 0.0])
    approach = np.array([np.cos(yaw) * np.sin(tilt), np.sin(yaw) * np.sin(tilt), -np.cos(tilt)])
    return np.stack([closing, np.cross(approach, closing), approach], axis=1)


def rotation_vector(rotation: Array) -> Array:
    """Return the axis times the angle `[3]`, in radians, of a rotation matrix `[3, 3]`."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(skew) / 2, (np.trace(rotation) - 1) / 2
    if sine > 1e-6:
        return np.asarray(skew / (2 * sine) * np.arctan2(sine, cosine))
    if cosine > 0:
        return np.zeros(3)
    axis = int(np.argmax(np.diag(rotation)))  # half a turn: the column of R + I along the axis
    column = rotation[:, axis] + np.eye(3)[axis]
    return np.asarray(np.pi * column / np.linalg.norm(column))


def action_towards(
    position: Array, rotation: Array, target: Array, target_rotation: Array, gripper: float, *, climb_first: bool
) -> NDArray[np.float32]:
    """Return the action `[7]` that moves a gripper at (`position`, `rotation`) towards the target pose.

    Height and horizontal position are corrected independently, so that a long way never delays a needed rise.

    Args:
        position: grip site `[3]`, world frame, metres.
        rotation: grip site `[3, 3]`, to the world frame.
        target: where it should be, `[3]`.
        target_rotation: how it should be oriented, `[3, 3]`.
        gripper: -1 opens, +1 closes.
        climb_first: go slower horizontally while the gripper is well below the target.
    """
    error = (target - position) * POSITION_GAIN / POSITION_STEP
    below = float(target[2] - position[2])
    speed = MAX_SPEED * (float(np.clip(1.0 - (below - CLIMB_SLACK) / CLIMB_SLACK, 0.0, 1.0)) if climb_first else 1.0)
    move = [*_limited(error[:2], speed), *_limited(error[2:], MAX_SPEED)]
    turn = _limited(rotation_vector(target_rotation @ rotation.T) * ROTATION_GAIN / ROTATION_STEP, MAX_TURN)
    return np.array([*move, *turn, gripper], dtype=np.float32)


def _limited(vector: Array, longest: float) -> Array:
    length = float(np.linalg.norm(vector))
    return vector if length <= longest else vector * (longest / length)
