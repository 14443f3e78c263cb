"""The skill for what was let go too far out under a roof: it is pushed the rest of the way in."""

import numpy as np

from rdvla.experts.libero.articulated import Phase, facing
from rdvla.experts.libero.boxes import Array
from rdvla.experts.libero.grasps import TIP_BELOW
from rdvla.experts.libero.inserting import TILT, Insert, find_entry, floor_height
from rdvla.experts.libero.joints import Joint
from rdvla.experts.libero.pressing import DOWN, GAP, PressShut
from rdvla.experts.libero.scene import Goal, LiberoScene

LOW = 0.035  # m above the floor that the finger tips push at most: the hand has to stay below the roof
NEAR = 0.10  # m before a region: from here on an object is pushed
SUNK = 0.01  # m below the region's floor that an object may stand and still be on it


class PushIn(PressShut):
    """Pushes an object into a place under a roof from outside, as a drawer is pushed shut.

    The goal is `("push", (object, region))`.
    """

    def __init__(self, scene: LiberoScene, goal: Goal) -> None:
        """Push towards `goal` in `scene`."""
        self._scene = scene
        self._wanted = Goal("in", goal.arguments)
        self.phase = Phase.TURN

    def start(self) -> None:
        """Plan from the present state and approach."""
        self._joint = _Way(self._scene, *self._wanted.arguments)
        super().start()

    def _plan(self) -> tuple[Array, Array]:
        """Return the pose of a hand that leans as for putting something in, its tips low before what sticks out."""
        name, region = self._wanted.arguments
        way, points = self._joint.direction, self._scene.boxes(name).points()
        outside = points[np.argmin(points @ way)] - GAP * way
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        tips = outside * np.abs(way) + middle * (1.0 - np.abs(way))
        tips[2] = min(tips[2], floor_height(self._scene, region) + LOW)
        approach = np.sin(TILT) * way + np.cos(TILT) * DOWN
        return tips - TIP_BELOW * approach, facing(self._scene, approach, np.cross(DOWN, way))


def stands_before(scene: LiberoScene, goal: Goal) -> bool:
    """Say whether what `goal`, an `in` predicate, wants under a roof stands on the floor there, but too far out."""
    name, region = goal.arguments
    if not Insert.suits(scene, goal) or scene.in_hand(name):
        return False
    into, half = find_entry(scene, name, region), scene.region_half_size(region)
    offset = scene.position(name) - scene.position(region)
    depth, width = float(np.abs(half @ into)), float(np.abs(np.cross(half, into)[2]))
    outward, aside = -float(offset @ into), float(np.abs(np.cross(offset, into)[2]))
    on_floor = float(scene.boxes(name).points()[:, 2].min()) > floor_height(scene, region) - SUNK
    return 0 < outward < depth + NEAR and aside < width and on_floor


class _Way(Joint):
    """The way of an object to the middle of a region, as if it were a slide."""

    hinge = False

    def __init__(self, scene: LiberoScene, name: str, region: str) -> None:
        self.body = scene.problem.obj_body_id[name]
        self._scene, self._name = scene, name
        self._into = find_entry(scene, name, region)
        self._start = scene.position(name)
        self.goal = self.end = float((scene.position(region) - self._start) @ self._into)

    @property
    def value(self) -> float:
        """How far (m) the object has gone."""
        return float((self._scene.position(self._name) - self._start) @ self._into)

    @property
    def axis(self) -> Array:
        """The direction `[3]` in."""
        return self._into
