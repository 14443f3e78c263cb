"""Making room first: what an opening drawer or door would hang over is put aside before."""

import numpy as np

from rdvla.experts.base import NoPlanError
from rdvla.experts.libero.boxes import Array, Boxes
from rdvla.experts.libero.grasps import BLOCKED_COST, horizontal_reach, plan_grasps
from rdvla.experts.libero.pick_and_place import PickAndPlace
from rdvla.experts.libero.placing import Place
from rdvla.experts.libero.scene import Goal, LiberoScene

RING_STEP = 0.02  # m between the distances at which a free spot is looked for
FARTHEST = 0.24  # m
DIRECTIONS = 12
BERTH = 0.04  # m that should be free around the object
CROWD_COST = 4.0  # m of way that a metre less is worth
NEAR = 0.2  # m beyond the spots that is looked at
CELL = 0.01  # m: raster of the object's outline
EASY = 2.0  # cost of a grasp that leaves room for a spot that is missed by a little


class Clear(PickAndPlace):
    """Puts an object aside so that it can still be taken once something has opened.

    The goal is `("clear", (object, door))`, where `door` is what `open` takes.
    """

    retreat_steps = 5  # what comes next rises too
    catches = 0  # wherever it stands will do

    _spot: Place | None = None

    def start(self) -> None:
        """Choose a spot and plan from the present state.

        Raises:
            NoPlanError: there is no spot, or the object cannot be taken.
        """
        self._spot = None
        super().start()

    def _find_place(self) -> Place:
        if self._spot is None:
            self._spot = self._find_spot()
        return self._spot

    def _find_spot(self) -> Place:
        scene, (name, door) = self._scene, self._goal.arguments
        boxes, position = scene.boxes(name), scene.position(name)
        low = float(boxes.points()[:, 2].min())
        others = np.concatenate([scene.obstacle_points(name), _opened(scene, door)])
        reach = horizontal_reach(low - float(scene.base[2]))
        shifts = [s for s in _shifts() if np.linalg.norm((position + s - scene.base)[:2]) < reach]
        costs = np.linalg.norm(shifts, axis=1) + CROWD_COST * np.maximum(0.0, BERTH - _gaps(boxes, others, shifts))
        for index in np.argsort(costs, kind="stable"):
            shift = shifts[int(index)]
            moved = Boxes(boxes.centers + shift, boxes.rotations, boxes.halves)
            if _can_be_taken(moved, others, scene, cost=EASY):
                return Place((position + shift)[:2], low, low)
        raise NoPlanError(f"no free spot for '{name}', which is in the way of opening '{door}'.")


def is_covered(scene: LiberoScene, name: str, door: str) -> bool:
    """Say whether object `name` could not be taken any more once `door` is open."""
    others = np.concatenate([scene.obstacle_points(name), _opened(scene, door)])
    return not _can_be_taken(scene.boxes(name), others, scene, cost=BLOCKED_COST)


def _can_be_taken(boxes: Boxes, others: Array, scene: LiberoScene, *, cost: float) -> bool:
    """Say whether there is a grasp below `cost`, and nothing above the object."""
    free = _gaps(boxes, others, [np.zeros(3)])[0] > CELL / 2
    return free and any(grasp.cost < cost for grasp in plan_grasps(boxes, others, scene.base))


def _gaps(boxes: Boxes, others: Array, shifts: list[Array]) -> Array:
    """Return how far (m) beside an object, moved by each of `shifts`, the nearest thing at or above its height is."""
    points = boxes.points()
    outline = np.unique(np.round(points[:, :2] / CELL), axis=0) * CELL
    near = np.linalg.norm(others[:, :2] - outline.mean(axis=0), axis=1) < FARTHEST + NEAR
    level = np.unique(np.round(others[near & (others[:, 2] > points[:, 2].min()), :2] / CELL), axis=0) * CELL
    apart = outline[:, None] - level[None]
    return np.array([np.linalg.norm(apart + shift[:2], axis=2).min(initial=NEAR) for shift in shifts])


def _opened(scene: LiberoScene, door: str) -> Array:
    """Return points `[M, 3]` of what moves, where it is when it is wide open."""
    joint = scene.joint(Goal("open", (door,)))
    points = scene.body_boxes(joint.body).points(0.015)
    return np.stack([joint.moved(point, np.eye(3), joint.end - joint.value)[0] for point in points])


def _shifts() -> list[Array]:
    """Return displacements `[3]` on the table, nearest first."""
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    lengths = np.arange(2 * RING_STEP, FARTHEST, RING_STEP)
    return [length * np.array([np.cos(angle), np.sin(angle), 0.0]) for length in lengths for angle in angles]
