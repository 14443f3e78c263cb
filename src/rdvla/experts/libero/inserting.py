"""The skill for `in` under a roof, which keeps a hand out from above: the object is brought in from the side.

The hand leans towards the opening and stays outside, so the object is taken by what will be at its outer end, e.g. a
handle, and turned on the way so that this end is outside.
"""

from dataclasses import replace

import numpy as np

from rdvla.experts.base import NoPlanError
from rdvla.experts.libero.boxes import Array
from rdvla.experts.libero.control import downward_rotation
from rdvla.experts.libero.grasps import (
    FAILED_COST,
    FINGER_HALF_DEPTH,
    FINGER_SPAN,
    HAND_ABOVE,
    KEEP_BONUS,
    Grasp,
    around_parts,
    closing_yaw,
)
from rdvla.experts.libero.hand import count_inside
from rdvla.experts.libero.pick_and_place import PATIENCE, Phase, PickAndPlace
from rdvla.experts.libero.scene import Goal, LiberoScene

TILT = np.deg2rad(60.0)
ROOF_RADIUS = 0.03  # m around a region's middle, at most: what is above it there is a roof
TAIL = 0.4  # of the half length behind the middle: from here on an object is held at its tail
PALM_GAP = 0.006  # m between the palm and what is held
MAX_HEADING = np.deg2rad(110.0)  # from straight ahead: beyond this the arm would have to reach around the object
GAP = 0.012  # m between object and floor on the way in
STANDOFF = 0.05  # m between an object and the region it is going into, to begin with
DEPTH_STEP = 0.01  # m
DEEPEST = 0.02  # m from a region's inner and outer border that an object's centre keeps
INSIDE_COST = 1.0  # per point of the surroundings that would be inside the hand or the object
SHALLOW_COST = 100.0  # per metre short of the middle
ASIDE_COST = 50.0  # per metre beside it
TURN_COST = 1.0  # per quarter turn on the way
BESIDE = 0.012  # m around the hand, and to the sides of the object, that should be free
FUNNEL = 5.0  # m of waiting for every metre beside the way in
CENTRED = 0.008  # m beside the way in at which to go in
BEFORE = 0.03  # m along the way in, to the standoff, at which to go in
NEARLY_THERE = 0.10  # m from the standoff within which the hand moves with care
ARRIVED = 0.010  # m from where to let go
SLOW = 0.002  # m per step: what moves less has met something
SLOW_STEPS = 6


class Insert(PickAndPlace):
    """Brings an object into a region under a roof, through the side that is open."""

    _into: Array  # [3], horizontal

    @staticmethod
    def suits(scene: LiberoScene, goal: Goal) -> bool:
        """Say whether `goal`, an `in` predicate, is about a place with a roof."""
        walls = scene.walls(goal.arguments[1]) if scene.is_region(goal.arguments[1]) else None
        if walls is None:
            return False
        offsets = walls.points() - scene.position(goal.arguments[1])
        radius = min(ROOF_RADIUS, float(scene.region_half_size(goal.arguments[1])[:2].min()) / 2)
        return bool(((np.linalg.norm(offsets[:, :2], axis=1) < radius) & (offsets[:, 2] > 0)).any())

    def _plan(self) -> list[Grasp]:
        scene = self._scene
        self._origin = scene.position(self._object)
        self._obstacles = scene.obstacle_points(self._object)
        self._into = find_entry(scene, self._object, self._goal.arguments[1])
        points = scene.boxes(self._object).points(0.006)
        found = sorted(self._tail_grasps(points), key=lambda grasp: grasp.cost)
        if not found:
            raise NoPlanError(f"'{self._object}' has no end that the hand can hold.")
        self._choose(found[0])
        return found

    def _hold_on(self) -> None:
        self._obstacles = self._scene.obstacle_points(self._object)
        self._into = find_entry(self._scene, self._object, self._goal.arguments[1])
        super()._hold_on()

    def _held(self) -> Grasp:
        """Return the grasp as it is: a hand that leans looks another way when it is turned by half."""
        closing, _, approach = self._scene.gripper_rotation.T
        yaw = closing_yaw(closing)
        tilt = float(np.arctan2(approach[0] * np.cos(yaw) + approach[1] * np.sin(yaw), -approach[2]))
        return replace(super()._held(), yaw=yaw, tilt=tilt)

    def _tail_grasps(self, points: Array) -> list[Grasp]:
        center = (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
        heading = float(np.arctan2(self._into[1], self._into[0]))
        found = []
        for part in around_parts(points):
            ahead = np.array([np.cos(part.yaw), np.sin(part.yaw)])
            side = float(np.sign((center - part.position[:2]) @ ahead))
            yaw = float(np.arctan2(*(side * ahead)[::-1]))
            along = (points[:, :2] - center) @ (side * ahead)
            behind = float((center - part.position[:2]) @ (side * ahead))
            if abs(yaw) > MAX_HEADING or behind < TAIL * -along.min():
                continue
            rotation = downward_rotation(yaw, TILT)
            position = part.position - _to_palm(part.position, rotation, points) * rotation[:, 2]
            own = points[np.linalg.norm(points - position, axis=1) > HAND_ABOVE]
            inside = count_inside(position, rotation, np.concatenate([own, self._obstacles]), opened=True)
            turn = abs(_wrap(heading - yaw)) / (np.pi / 2)
            cost = part.cost + INSIDE_COST * inside + TURN_COST * turn + FAILED_COST * self._failures[part.label]
            cost -= KEEP_BONUS if self.grasp is not None and self.grasp.label == part.label else 0.0
            found.append(replace(part, position=position, yaw=yaw, tilt=float(TILT), cost=cost))
        return found

    def _aim(self, position: Array) -> None:
        """Latch where the hand goes in front of the opening and inside, for the object as it sits in the hand."""
        scene, region, into = self._scene, self._goal.arguments[1], self._into
        hand = scene.gripper_rotation
        shape = scene.boxes(self._object).points()
        self._offset = position - scene.position(self._object)
        self._offset_in_hand = hand.T @ self._offset
        self._turn = _wrap(float(np.arctan2(into[1], into[0])) - self._planned.yaw)
        rotation = downward_rotation(self._planned.yaw + self._turn, self._planned.tilt)
        shape = (shape - position) @ hand @ rotation.T  # around the grip site, as it will be
        origin = -rotation @ self._offset_in_hand
        self._hang = -float(shape[:, 2].min())
        center, half = scene.position(region), scene.region_half_size(region)
        support = floor_height(scene, region)
        center = np.array([*center[:2], support + GAP + self._hang + origin[2]]) - origin
        depth = float(np.abs(half @ into))
        inner = np.arange(DEEPEST - depth, DEPTH_STEP / 2, DEPTH_STEP)
        self._release = self._freest(center, half, inner, shape, rotation)
        outside = -depth - float(((shape - origin) @ into).max()) - STANDOFF
        before = self._release - into * float((self._release - center) @ into)
        self._above_place = self._freest(before, half, np.array([outside]), shape, rotation)

    def _freest(self, center: Array, half: Array, depths: Array, shape: Array, rotation: Array) -> Array:
        """Return the position `[3]` of the hand, at one of `depths` (m) from the middle, with the least in its way."""
        into = self._into
        aside = np.array([-into[1], into[0], 0.0])
        room = max(float(np.abs(half @ aside)) - DEEPEST, 0.0)
        best, lowest = center, np.inf
        near = self._obstacles[np.linalg.norm(self._obstacles - center, axis=1) < 0.5]
        for depth in depths:
            for lateral in np.arange(-room, room + DEPTH_STEP / 2, DEPTH_STEP):
                position = center + depth * into + lateral * aside
                inside = count_inside(position, rotation, near, opened=False, margin=BESIDE)
                inside += _count_met(shape + position, near)
                cost = INSIDE_COST * inside + SHALLOW_COST * abs(depth) + ASIDE_COST * abs(lateral)
                if cost < lowest:
                    best, lowest = position, cost
        return best

    @property
    def precise(self) -> bool:
        """Whether the hand is at the object, or near the opening."""
        return super().precise or (self.phase is Phase.CARRY and self._off_standoff < NEARLY_THERE)

    @property
    def _off_standoff(self) -> float:
        return float(np.linalg.norm(self._scene.gripper_position - self._above_place))

    def _carried(self, position: Array) -> Array:
        """Return where the hand goes next: beside the way in it waits before it goes ahead."""
        to_go = float((self._above_place - position) @ self._into)
        aside = self._above_place - position - to_go * self._into
        wait = float(np.clip(FUNNEL * (np.linalg.norm(aside[:2]) - CENTRED), 0.0, max(to_go, 0.0)))
        return super()._carried(position) - wait * self._into

    def _is_centred(self, position: Array) -> bool:
        offset = position - self._above_place
        along = float(offset @ self._into)
        return abs(along) < BEFORE and float(np.linalg.norm(offset - along * self._into)) < CENTRED

    def _advance(self, position: Array) -> bool:
        match self.phase:
            case Phase.CARRY if not self._lost(position):
                if (self._is_centred(position) and self._is_turned) or self._steps > PATIENCE:
                    self._enter(Phase.LOWER)
                    self._left = np.inf
            case Phase.LOWER if not self._lost(position):
                left = float(np.linalg.norm(position - self._release))
                self._still = self._still + 1 if left > self._left - SLOW else 0
                self._left = left
                if left < ARRIVED or self._still >= SLOW_STEPS:
                    self._release = position
                    self._held_opening = self._scene.gripper_opening
                    self._enter(Phase.OPEN)
            case _:
                return super()._advance(position)
        return True


def find_entry(scene: LiberoScene, name: str, region: str) -> Array:
    """Return the horizontal direction `[3]`, along a region's sides, in which the least is in an object's way."""
    center, half = scene.position(region), scene.region_half_size(region)
    offsets = scene.obstacle_points(name) - center
    offsets = offsets[np.abs(offsets[:, 2]) < half[2]]
    length = float(np.ptp(scene.boxes(name).points()[:, :2], axis=0).max())
    best, fewest = np.zeros(3), np.inf
    for axis in range(2):
        for sign in (1.0, -1.0):
            outward = -sign * offsets[:, axis]
            beside = np.abs(offsets[:, 1 - axis]) < half[1 - axis] / 2
            met = int((beside & (outward > 0) & (outward < half[axis] + length)).sum())
            if met < fewest:
                best, fewest = sign * np.eye(3)[axis], met
    return best


def floor_height(scene: LiberoScene, region: str) -> float:
    """Return the height of what a region's object stands on."""
    center, half, walls = scene.position(region), scene.region_half_size(region), scene.walls(region)
    assert walls is not None
    points = walls.points()
    points = points[np.linalg.norm(points[:, :2] - center[:2], axis=1) < ROOF_RADIUS]
    return float(points[points[:, 2] < center[2], 2].max(initial=center[2] - half[2]))


def _to_palm(position: Array, rotation: Array, own: Array) -> float:
    """Return how far (m) a hand must be drawn back so that what is between its fingers stays clear of its palm."""
    local = (own - position) @ rotation
    between = (np.abs(local[:, 0]) < FINGER_SPAN[0]) & (np.abs(local[:, 1]) < FINGER_HALF_DEPTH)
    return max(0.0, float((-local[between, 2]).max(initial=0.0)) - HAND_ABOVE + PALM_GAP)


def _count_met(shape: Array, points: Array) -> int:
    """Return how many of `points` `[M, 3]` lie within the bounding box of a shape `[N, 3]`, or close beside it."""
    margin = np.array([BESIDE, BESIDE, 0.0])
    return int(((points > shape.min(axis=0) - margin) & (points < shape.max(axis=0) + margin)).all(axis=1).sum())


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
