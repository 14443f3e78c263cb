"""The skill for what is too flat and wide to be carried: take it by its rim and slide it over the table."""

import numpy as np

from rdvla.experts.libero.boxes import Array, corridor_height
from rdvla.experts.libero.grasps import MAX_WIDTH
from rdvla.experts.libero.pick_and_place import Phase, PickAndPlace
from rdvla.experts.libero.scene import Goal, LiberoScene

FLAT = 0.03  # m of height below which an object hangs loosely when held by its rim
BERTH = 0.015  # m between the object and what it passes
NEAR_WAYPOINT = 0.02  # m
PRESS = 0.02  # m below the grasp that the hand is sent to: a slanted rim lifts it, and the fingers would slip off


class Slide(PickAndPlace):
    """Brings a flat object to a place on the same table, past what stands there."""

    _route: list[Array]

    @staticmethod
    def suits(scene: LiberoScene, goal: Goal) -> bool:
        """Say whether `goal`, an `on` predicate, is better reached by sliding than by carrying."""
        name, target = goal.arguments
        if not scene.is_region(target) or scene.parent(target) is not None:
            return False
        extent = np.ptp(scene.boxes(name).points(), axis=0)
        return bool(extent[2] < FLAT and min(extent[:2]) > MAX_WIDTH)

    def _begin_lift(self, position: Array) -> None:
        self._aim(position)
        self._route = [waypoint + self._offset[:2] for waypoint in self._waypoints()]
        self._enter(Phase.CARRY)

    def _aim(self, position: Array) -> None:
        super()._aim(position)
        self._release[2] = self._above_place[2] = self._hold[2]

    def _carried(self, position: Array) -> Array:
        if len(self._route) > 1 and np.linalg.norm(position[:2] - self._route[0]) < NEAR_WAYPOINT:
            del self._route[0]
        return np.array([*self._route[0], self._hold[2]])

    def _target(self, position: Array) -> tuple[Array, float]:
        target, gripper = super()._target(position)
        if self.phase is Phase.CLOSE:
            target = target - np.array([0.0, 0.0, PRESS])
        return target, gripper

    def _waypoints(self) -> list[Array]:
        """Return the way `[2]` of the object's centre: straight, or around a corner if that is freer."""
        start, end = self._scene.position(self._object)[:2], self._place.xy
        around = float(np.ptp(self._scene.boxes(self._object).points(), axis=0)[:2].max()) / 2 + BERTH
        ways = [[end], [np.array([start[0], end[1]]), end], [np.array([end[0], start[1]]), end]]

        def blocked(way: list[Array]) -> float:
            legs = zip([start, *way], way, strict=False)
            return max(corridor_height(self._obstacles, a, b, around, -np.inf) for a, b in legs)

        return min(ways, key=blocked)
