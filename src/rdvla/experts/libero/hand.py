"""The gripper's volume, and what of the surroundings would be inside it."""

import numpy as np

from rdvla.experts.libero.boxes import Array
from rdvla.experts.libero.grasps import (
    ARM_REACH,
    FINGER_HALF_DEPTH,
    FINGER_SPAN,
    HAND_ABOVE,
    HAND_HALF_SPAN,
    SHOULDER,
    TIP_BELOW,
    WRIST_ABOVE,
)

HAND_LENGTH = 0.11  # m from the grip site back to the flange
WRIST_LENGTH = 0.25  # m from the grip site back to the end of what is checked
WRIST_RADIUS = 0.055
HELD_SPAN = (0.010, 0.035)  # m from the grip site to a finger's sides, closing direction, around something narrow


def count_inside(position: Array, rotation: Array, points: Array, *, opened: bool, margin: float = 0.0) -> int:
    """Return how many of `points` `[M, 3]` would be inside the hand.

    Args:
        position: the grip site `[3]`.
        rotation: the grip site's frame `[3, 3]`: closing direction, depth, approach.
        points: obstacles, world frame, metres.
        opened: whether the fingers are open; else they hold something, and what is between them does not count.
        margin: m around palm and wrist that counts as inside.
    """
    local = (points - position) @ rotation
    closing, depth, behind = np.abs(local[:, 0]), np.abs(local[:, 1]), -local[:, 2]
    inner, outer = FINGER_SPAN if opened else HELD_SPAN
    fingers = (behind > -TIP_BELOW) & (behind <= HAND_ABOVE) & (depth < FINGER_HALF_DEPTH)
    fingers &= (closing > inner) & (closing < outer)
    palm = (behind > HAND_ABOVE - margin) & (behind < HAND_LENGTH)
    palm &= (closing < HAND_HALF_SPAN[0] + margin) & (depth < HAND_HALF_SPAN[1] + margin)
    wrist = (behind >= HAND_LENGTH) & (behind < WRIST_LENGTH) & (np.hypot(closing, depth) < WRIST_RADIUS + margin)
    return int((fingers | palm | wrist).sum())


def out_of_reach(position: Array, rotation: Array, base: Array) -> Array:
    """Return how far, horizontally outward from the base, the wrist is beyond a comfortable reach: `[3]`, metres.

    Args:
        position: the grip site `[3]`.
        rotation: the grip site's frame `[3, 3]`: closing direction, depth, approach.
        base: the robot base's position `[3]`.
    """
    wrist = position - WRIST_ABOVE * rotation[:, 2] - base
    limit = float(np.sqrt(max(0.0, ARM_REACH**2 - float(wrist[2] - SHOULDER) ** 2)))
    length = float(np.linalg.norm(wrist[:2]))
    return np.array([*wrist[:2], 0.0]) * (max(0.0, length - limit) / length)
