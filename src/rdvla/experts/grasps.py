"""Choosing where a parallel gripper takes an object, from box geometry alone.

Two families of candidates: around the whole object (fingers on two opposite sides) and, for what is too wide,
across its rim (one finger inside, one outside). What stands in the way of fingers or hand lifts the grasp;
a grasp that would be lifted off the object is the last resort. Preferences are smooth in the object's pose, with one
fixed side preferred among equals, so similar scenes get the same grasp.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rdvla.experts.boxes import Array, Boxes

MAX_WIDTH = 0.074  # m between the open fingers that we dare to use
TIP_BELOW = 0.0125  # m from the grip site down to the finger tips
HAND_ABOVE = 0.030  # m from the grip site up to the hand
FINGER_SPAN = (0.037, 0.062)  # m from the grip site to the open finger's inner and outer side, closing direction
FINGER_HALF_DEPTH = 0.011
HAND_HALF_SPAN = (0.105, 0.032)
REACH = 0.74  # m, horizontally from the robot's base
SOLID_DEPTH = 0.030  # m below the top: grip sites of grasps around an object
RIM_DEPTH = 0.022
MIN_HEIGHT = 0.014  # m above the object's lowest point
BLOCKED_COST = 5.0
END_SHIFT = 0.02  # m from the middle of a long object to the grasps beside it
END_MARGIN = 0.012  # m of object that must remain beyond such a grasp
MIN_OVERLAP = 0.003  # m of object that must remain above the grip site
ANGLE_STEP = np.deg2rad(15.0)
HEADINGS = tuple(np.deg2rad([0.0, 30.0, -30.0, 60.0, -60.0, 90.0]))
SAME_HEADING = np.deg2rad(12.0)


@dataclass(frozen=True)
class Grasp:
    """Where the grip site goes.

    Attributes:
        position: float64 `[3]`, world frame, metres.
        yaw: radians in (-pi/2, pi/2]; 0 closes the fingers along the world's y axis.
        cost: lower is better; only differences within one plan mean anything.
        label: names the candidate across plans of the same object (family and angle in degrees).
    """

    position: Array
    yaw: float
    cost: float
    label: str


def closing_axis(yaw: float) -> Array:
    """Return the horizontal unit vector `[2]` along which the fingers close."""
    return np.array([-np.sin(yaw), np.cos(yaw)])


def wrap_half_turn(angle: float) -> float:
    """Map an angle to (-pi/2, pi/2]: the gripper looks the same after half a turn."""
    return float(-((-angle + np.pi / 2) % np.pi - np.pi / 2))


def plan_grasps(
    boxes: Boxes,
    obstacles: Array,
    base_xy: Array,
    *,
    place_offset: Array | None = None,
    keep: str | None = None,
    excluded: Iterable[str] = (),
) -> list[Grasp]:
    """Return the grasps of an object, best first; those that touch an obstacle come last.

    Args:
        boxes: the object's collision boxes.
        obstacles: points `[M, 3]` of everything else that can be hit.
        base_xy: the robot base `[2]`, for the reach.
        place_offset: `[2]`, where the object will go relative to where it is; the reach counts there too.
        keep: label of the grasp planned before, preferred so that a small change does not flip the choice.
        excluded: labels of grasps that failed.
    """
    points = boxes.points(0.006)
    candidates = list(_around(points, boxes.heading())) or list(_across_rim(points))
    dropped = set(excluded)
    grasps = []
    for candidate in candidates:
        if candidate.label in dropped:
            continue
        raised, margin = _clearance(candidate, points, obstacles)
        room = float(points[:, 2].max()) - MIN_OVERLAP - float(candidate.position[2])
        blocked = max(0.0, raised - room)
        position = candidate.position + np.array([0.0, 0.0, min(raised, room)])
        cost = candidate.cost + 60.0 * min(raised, room) + 12.0 * margin
        cost += BLOCKED_COST + 20.0 * blocked if blocked > 0 else 0.0
        for target in [position[:2]] + ([position[:2] + place_offset] if place_offset is not None else []):
            cost += 10.0 * max(0.0, float(np.linalg.norm(target - base_xy)) - REACH)
        if candidate.label == keep:
            cost -= 0.5
        grasps.append(Grasp(position, candidate.yaw, cost, candidate.label))
    return sorted(grasps, key=lambda grasp: grasp.cost)


def _around(points: Array, box_yaw: float) -> Iterator[Grasp]:
    """Yield grasps with the object between the fingers, one per heading, where it is narrow enough."""
    top, bottom = points[:, 2].max(), points[:, 2].min()
    height = max(top - SOLID_DEPTH, bottom + MIN_HEIGHT)
    upper = points[points[:, 2] >= min(height - TIP_BELOW, top - 0.001)]
    sides = [wrap_half_turn(box_yaw + turn) for turn in (0.0, np.pi / 2)]
    apart = [heading for heading in HEADINGS if all(abs(wrap_half_turn(heading - s)) > SAME_HEADING for s in sides)]
    for yaw in sides + apart:
        axis = closing_axis(yaw)
        across = np.array([axis[1], -axis[0]])
        closing, other = upper[:, :2] @ axis, upper[:, :2] @ across
        width = float(np.ptp(closing))
        if width > MAX_WIDTH:
            continue
        middle = axis * (closing.max() + closing.min()) / 2 + across * (other.max() + other.min()) / 2
        cost = abs(yaw) / (np.pi / 2) + 40.0 * max(0.0, width - 0.066) + (0.05 if yaw < 0 else 0.0)
        shifts = (0.0, -END_SHIFT, END_SHIFT) if np.ptp(other) > 2 * (END_SHIFT + END_MARGIN) else (0.0,)
        for shift in shifts:
            label = f"around {round(np.rad2deg(yaw) / 15) * 15} at {round(100 * shift):+d} cm"
            position = np.array([*(middle + shift * across), height])
            yield Grasp(position, yaw, cost + 10.0 * abs(shift) + (0.05 if shift > 0 else 0.0), label)


def _across_rim(points: Array) -> Iterator[Grasp]:
    """Yield grasps with one wall of a hollow object between the fingers, one per direction from its centre."""
    top, bottom = points[:, 2].max(), points[:, 2].min()
    height = max(top - RIM_DEPTH, bottom + MIN_HEIGHT)
    wall = points[points[:, 2] >= min(height - 0.006, top - 0.004)]
    center = (wall[:, :2].max(0) + wall[:, :2].min(0)) / 2
    offsets = wall[:, :2] - center
    directions = np.arctan2(offsets[:, 1], offsets[:, 0])
    for angle in np.arange(-np.pi, np.pi - 1e-6, ANGLE_STEP):
        apart = np.abs((directions - angle + np.pi) % (2 * np.pi) - np.pi)
        sector = apart < np.deg2rad(12.0)
        if not sector.any():
            continue
        radii = np.linalg.norm(offsets[sector], axis=1)
        radius = (radii.max() + radii.min()) / 2
        if radius < FINGER_SPAN[0] / 2 or np.ptp(radii) > 0.04:
            continue
        outward = np.array([np.cos(angle), np.sin(angle)])
        yaw = wrap_half_turn(angle - np.pi / 2)
        cost = abs(yaw) / (np.pi / 2) + (0.4 if outward[1] > 1e-6 else 0.0)
        yield Grasp(np.array([*(center + radius * outward), height]), yaw, cost, f"rim {round(np.rad2deg(angle))}")


def _clearance(grasp: Grasp, own: Array, others: Array) -> tuple[float, float]:
    """Return how far (m) the grasp must be lifted to be free, and how much more for a centimetre of side margin."""
    own_free = _required_height(grasp, own, 0.0) + 0.002
    free = max(own_free, _required_height(grasp, others, 0.003) + 0.004)
    roomy = max(free, _required_height(grasp, others, 0.010))
    height = float(grasp.position[2])
    return max(0.0, free - height), min(0.05, max(0.0, roomy - max(free, height)))


def _required_height(grasp: Grasp, points: Array, margin: float) -> float:
    """Return the lowest grip site height at which fingers and hand stay above every point below them."""
    axis = closing_axis(grasp.yaw)
    offset = points[:, :2] - grasp.position[:2]
    closing, across = np.abs(offset @ axis), np.abs(offset @ np.array([axis[1], -axis[0]]))
    in_finger = (closing > FINGER_SPAN[0] - margin) & (closing < FINGER_SPAN[1] + margin)
    in_finger &= across < FINGER_HALF_DEPTH + margin
    in_hand = (closing < HAND_HALF_SPAN[0] + margin) & (across < HAND_HALF_SPAN[1] + margin)
    heights = np.concatenate(
        [[-np.inf], points[in_finger, 2] + TIP_BELOW, points[in_hand, 2] - HAND_ABOVE]  # one sentinel: none in the way
    )
    return float(heights.max())
