"""Choosing where a parallel gripper takes an object, from box geometry alone.

Three families of candidates: around the whole object (fingers on two opposite sides) and, for what is too wide,
across its rim (one finger inside, one outside) or around a part of it that is narrower. What stands in the way of
fingers or hand lifts the grasp; a grasp that would be lifted off the object is the last resort. Preferences are smooth
in the object's pose, with one side preferred among equals, so similar scenes get the same grasp.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rdvla.experts.libero.boxes import Array, Boxes

MAX_WIDTH = 0.074  # m between the open fingers that we dare to use
TIP_BELOW = 0.0125  # m from the grip site down to the finger tips
HAND_ABOVE = 0.030  # m from the grip site up to the hand
FINGER_SPAN = (0.037, 0.062)  # m from the grip site to the open finger's inner and outer side, closing direction
FINGER_HALF_DEPTH = 0.011
GRIPPED_HALF_SPAN = 0.012  # m beside the grip site, closing direction: what is there is between the fingers
HAND_HALF_SPAN = (0.105, 0.032)
SHOULDER = 0.333  # m above the base
ARM_REACH = 0.66  # m from the shoulder to the wrist, short of a stretched elbow
WRIST_ABOVE = 0.204  # m from the grip site up to the wrist of a hand that points down
WRIST_OFFSET = 0.088  # m from the wrist to the grip site, horizontally outward
APPROACH_HEIGHT = 0.10  # m above grasp and release that must be in reach too
REACH_COST = 40.0  # per metre beyond
SOLID_DEPTH = 0.030  # m below the top: grip sites of grasps around an object
RIM_DEPTH = 0.022
MIN_HEIGHT = 0.014  # m above the object's lowest point
SIDE_COST = 0.4  # for taking a rim on the side away from the robot's middle, so that one side wins wherever it is free
FAR_RIGHT = -0.2  # m beside the base: where that changes; in the middle, a rim is taken on its right
STRADDLE_COST = 1.0  # for having something else between the fingers
BLOCKED_COST = 5.0
KEEP_BONUS = 0.5
FAILED_COST = 1.2  # per failure: noise can spoil the only good grasp, which deserves another try
PART_COST = 1.0  # for holding an object by a part of it
PART_DISTANCE_COST = 10.0  # per metre from the object's middle
WEDGE_COST = 200.0  # per metre that the part gets wider across the fingers: it would slip out
PART_STEP = 0.01  # m
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
        tilt: radians by which the hand leans out of the vertical, to point towards (cos(yaw), sin(yaw)).
    """

    position: Array
    yaw: float
    cost: float
    label: str
    tilt: float = 0.0


def closing_axis(yaw: float) -> Array:
    """Return the horizontal unit vector `[2]` along which the fingers close."""
    return np.array([-np.sin(yaw), np.cos(yaw)])


def closing_yaw(axis: Array) -> float:
    """Return the yaw of a hand that closes along `axis` `[2 or 3]`, in (-pi, pi]; the inverse of `closing_axis`."""
    return float(np.arctan2(-axis[0], axis[1]))


def wrap_half_turn(angle: float) -> float:
    """Map an angle to (-pi/2, pi/2]: the gripper looks the same after half a turn."""
    return float(-((-angle + np.pi / 2) % np.pi - np.pi / 2))


def horizontal_reach(height: float) -> float:
    """Return how far (m) from the base's axis the grip site works well, `height` metres above the base."""
    rise = height + WRIST_ABOVE - SHOULDER
    return WRIST_OFFSET + float(np.sqrt(max(0.0, ARM_REACH**2 - rise**2)))


def plan_grasps(
    boxes: Boxes,
    obstacles: Array,
    base: Array,
    *,
    place_offset: Array | None = None,
    keep: str | None = None,
    failures: Mapping[str, int] | None = None,
) -> list[Grasp]:
    """Return the grasps of an object, best first; those that touch an obstacle come last.

    Args:
        boxes: the object's collision boxes.
        obstacles: points `[M, 3]` of everything else that can be hit.
        base: the robot base's position `[3]`, for the reach.
        place_offset: `[3]`, where the object will go relative to where it is; the reach counts there too.
        keep: label of the grasp planned before, preferred so that a small change does not flip the choice.
        failures: how often each grasp failed, by label.
    """
    points = boxes.points(0.006)
    candidates = list(_around(points, boxes.heading()))
    if not candidates:
        candidates = [*_across_rim(points, float(base[1])), *around_parts(points)]
    grasps = []
    for candidate in candidates:
        raised, margin, straddles = _clearance(candidate, points, obstacles)
        room = _top_between(candidate, points) - MIN_OVERLAP - float(candidate.position[2])
        blocked = max(0.0, raised - room)
        position = candidate.position + np.array([0.0, 0.0, min(raised, room)])
        cost = candidate.cost + 60.0 * min(raised, room) + 12.0 * margin
        cost += BLOCKED_COST + 20.0 * blocked if blocked > 0 else 0.0
        cost += STRADDLE_COST if straddles else 0.0
        cost += REACH_COST * _beyond_reach(position - base)
        if place_offset is not None:
            cost += REACH_COST * _beyond_reach(position + place_offset - base)
        if candidate.label == keep:
            cost -= KEEP_BONUS
        cost += FAILED_COST * (failures or {}).get(candidate.label, 0)
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


def around_parts(points: Array) -> Iterator[Grasp]:
    """Yield grasps around what is narrow enough of a wide object: a handle, a waist."""
    bottom, center = points[:, 2].min(), (points[:, :2].max(0) + points[:, :2].min(0)) / 2
    for yaw in np.arange(-np.pi / 2 + ANGLE_STEP, np.pi / 2 + 1e-6, ANGLE_STEP):
        axis = closing_axis(yaw)
        across = np.array([axis[1], -axis[0]])
        closing, other = (points[:, :2] - center) @ axis, (points[:, :2] - center) @ across
        for shift in np.arange(other.min() + PART_STEP, other.max(), PART_STEP):
            swath = np.abs(other - shift) < FINGER_HALF_DEPTH
            if not swath.any():
                continue
            height = max(points[swath, 2].max() - SOLID_DEPTH, bottom + MIN_HEIGHT)
            part = swath & (points[:, 2] >= height - TIP_BELOW)
            width = float(np.ptp(closing[part]))
            halves = [closing[part & (side * (other - shift) > 0)] for side in (-1, 1)]
            if width > MAX_WIDTH or min(map(len, halves)) == 0:
                continue
            wedge = abs(float(np.ptp(halves[0]) - np.ptp(halves[1])))
            beside = (closing[part].max() + closing[part].min()) / 2
            position = center + axis * beside + across * shift
            cost = PART_COST + PART_DISTANCE_COST * float(np.hypot(beside, shift))
            cost += WEDGE_COST * wedge + 0.5 * (yaw / (np.pi / 2)) ** 2 + 40.0 * max(0.0, width - 0.066)
            label = f"part {round(np.rad2deg(yaw))} at {round(100 * shift):+d} cm"
            yield Grasp(np.array([*position, height]), yaw, cost, label)


def _across_rim(points: Array, base_y: float) -> Iterator[Grasp]:
    """Yield grasps with one wall of a hollow object between the fingers, one per direction from its centre."""
    top, bottom = points[:, 2].max(), points[:, 2].min()
    height = max(top - RIM_DEPTH, bottom + MIN_HEIGHT)
    wall = points[points[:, 2] >= min(height - 0.006, top - 0.004)]
    center = (wall[:, :2].max(0) + wall[:, :2].min(0)) / 2
    near_side = -1.0 if center[1] - base_y > FAR_RIGHT else 1.0
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
        cost = 1.5 * (yaw / (np.pi / 2)) ** 2 + (SIDE_COST if outward[1] * near_side < -1e-6 else 0.0)
        yield Grasp(np.array([*(center + radius * outward), height]), yaw, cost, f"rim {round(np.rad2deg(angle))}")


def _beyond_reach(position: Array) -> float:
    """Return how far (m) the approach to a grip site at `position` `[3]`, seen from the base, is out of reach."""
    limit = horizontal_reach(float(position[2]) + APPROACH_HEIGHT)
    return max(0.0, float(np.linalg.norm(position[:2])) - limit)


def _clearance(grasp: Grasp, own: Array, others: Array) -> tuple[float, float, bool]:
    """Return how far (m) the grasp must be lifted to be free, and how it stands to its neighbourhood.

    The second value is how much more lift a centimetre of side margin would take, the third whether something
    else comes between the fingers.
    """
    own_free = _required_height(grasp, own, FINGER_SPAN[0], 0.0) + 0.002
    free = max(own_free, _required_height(grasp, others, FINGER_SPAN[0], 0.003) + 0.004)
    roomy = max(free, _required_height(grasp, others, FINGER_SPAN[0], 0.010))
    height = float(grasp.position[2])
    straddles = _required_height(grasp, others, 0.0, 0.0) > max(free, height)
    return max(0.0, free - height), min(0.05, max(0.0, roomy - max(free, height))), straddles


def _top_between(grasp: Grasp, own: Array) -> float:
    """Return the highest z of what the fingers close on."""
    axis = closing_axis(grasp.yaw)
    offset = own[:, :2] - grasp.position[:2]
    between = np.abs(offset @ axis) < GRIPPED_HALF_SPAN
    between &= np.abs(offset @ np.array([axis[1], -axis[0]])) < FINGER_HALF_DEPTH
    return float(own[between, 2].max(initial=grasp.position[2]))


def _required_height(grasp: Grasp, points: Array, inner: float, margin: float) -> float:
    """Return the lowest grip site height at which fingers and hand stay above every point below them.

    Args:
        grasp: the grasp.
        points: what may be below, `[M, 3]`.
        inner: m from the grip site to where the fingers begin; 0 counts what is between them too.
        margin: m around fingers and hand that must be free as well.
    """
    axis = closing_axis(grasp.yaw)
    offset = points[:, :2] - grasp.position[:2]
    closing, across = np.abs(offset @ axis), np.abs(offset @ np.array([axis[1], -axis[0]]))
    in_finger = (closing > inner - margin) & (closing < FINGER_SPAN[1] + margin)
    in_finger &= across < FINGER_HALF_DEPTH + margin
    in_hand = (closing < HAND_HALF_SPAN[0] + margin) & (across < HAND_HALF_SPAN[1] + margin)
    below = [points[in_finger, 2] + TIP_BELOW, points[in_hand, 2] - HAND_ABOVE]
    return float(np.concatenate(below).max(initial=-np.inf))
