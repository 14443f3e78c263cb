"""Pick-and-place for LIBERO: one routine for every task whose goal is `in` or `on`."""

from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, SimulatorError
from rdvla.experts.boxes import Array, corridor_height
from rdvla.experts.control import CLOSED, OPEN, action_towards, downward_rotation
from rdvla.experts.grasps import TIP_BELOW, Grasp, plan_grasps
from rdvla.experts.placing import find_place
from rdvla.experts.scene import Goal, LiberoScene

HOVER_HEIGHT = 0.10  # m above the grasp
CARRY_CLEARANCE = 0.03  # m between what is carried and what it passes over
CORRIDOR_RADIUS = 0.07  # m beside the straight path that counts as on it
REPLAN_SHIFT = 0.008  # m that an object may move before the approach is planned anew
DESCENT_SHIFT = 0.02  # the same while descending, when the fingers may touch it
CLOSE_STEPS = 10
OPEN_STEPS = 20  # at most; the gripper needs about 6 to begin
OPEN_ENOUGH = 0.012  # m between the fingers more than while holding
RETREAT_STEPS = 8
PICKED_RISE = 0.02  # m that a held object must have risen
LOST_SHIFT = 0.06  # m that an object may shift in the hand
STUCK_MOVE = 0.0012  # m per step below which a lowered gripper counts as standing still
STUCK_STEPS = 4
PATIENCE = 100  # steps after which a phase ends whatever the error


class Phase(Enum):
    """What the gripper is doing."""

    HOVER = auto()
    DESCEND = auto()
    CLOSE = auto()
    LIFT = auto()
    CARRY = auto()
    LOWER = auto()
    OPEN = auto()
    RETREAT = auto()


class PickAndPlace:
    """Brings objects to where the goal wants them, one unmet predicate at a time.

    Raises:
        ConfigError: (on `reset`) the goal has a predicate other than `in` and `on`.
        SimulatorError: (on `reset`) no grasp of the object is free.
    """

    _hover: Array
    _hold: Array
    _lifted: Array
    _above_place: Array
    _release: Array
    _offset: Array
    _hang: float

    def __init__(self) -> None:
        self.phase = Phase.HOVER
        self.grasp: Grasp | None = None

    @property
    def precise(self) -> bool:
        """Whether the gripper is descending, closing or lowering."""
        return self.phase in (Phase.DESCEND, Phase.CLOSE, Phase.LOWER, Phase.OPEN)

    def reset(self, env: Any) -> None:
        """Read the scene of `env` (a `LiberoEnv`) and plan the first grasp."""
        self._scene = LiberoScene(env.unwrapped)
        unsupported = [g.predicate for g in self._scene.goals if g.predicate not in ("in", "on")]
        if unsupported:
            raise ConfigError(f"pick-and-place cannot reach goals of kind {', '.join(unsupported)}.")
        self._excluded: set[str] = set()
        self.grasp = None
        self._start()

    def act(self, env: Any) -> NDArray[np.float32]:
        """Return the next action `[7]`: OSC_POSE displacements and the gripper (-1 open, +1 close)."""
        position, rotation = self._scene.gripper_position, self._scene.gripper_rotation
        self._advance(position)
        self._steps += 1
        target, gripper = self._target(position)
        self._last_height = float(position[2])
        return action_towards(
            position,
            rotation,
            target,
            downward_rotation(self._planned.yaw),
            gripper,
            climb_first=self.phase in (Phase.HOVER, Phase.CARRY),
        )

    @property
    def _planned(self) -> Grasp:
        assert self.grasp is not None
        return self.grasp

    def _start(self) -> None:
        """Plan for the first unmet predicate (the last one if all are met) and approach."""
        goals = self._scene.goals
        self._goal: Goal = next((goal for goal in goals if not self._scene.holds(goal)), goals[-1])
        self._object = self._goal.arguments[0]
        self._plan()
        self._enter(Phase.HOVER)

    def _plan(self) -> None:
        scene = self._scene
        self._place = find_place(scene, self._goal)
        self._obstacles: Array = scene.obstacle_points(self._object)
        self._origin = scene.position(self._object)
        boxes = scene.boxes(self._object)
        rise = self._place.support - float(boxes.points()[:, 2].min())
        found = plan_grasps(
            boxes,
            self._obstacles,
            scene.base,
            place_offset=np.array([*(self._place.xy - self._origin[:2]), rise]),
            keep=None if self.grasp is None else self.grasp.label,
            excluded=self._excluded,
        )
        if not found and self._excluded:
            self._excluded.clear()
            self._plan()
            return
        if not found:
            raise SimulatorError(f"no grasp of '{self._object}' is free of obstacles.")
        self.grasp = found[0]
        self._hover = self._planned.position + np.array([0.0, 0.0, HOVER_HEIGHT])

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._steps = 0
        self._still = 0
        self._last_height = np.inf

    def _advance(self, position: Array) -> None:
        """Go to the next phase when the present one is over."""
        late = self._steps > PATIENCE
        match self.phase:
            case Phase.HOVER:
                self._replan_if_moved(REPLAN_SHIFT)
                if late or (_near(position, self._hover, 0.012, 0.02) and self._yaw_error() < 0.12):
                    self._enter(Phase.DESCEND)
            case Phase.DESCEND:
                if self._replan_if_moved(DESCENT_SHIFT):
                    self._enter(Phase.HOVER)
                elif late or position[2] < self._planned.position[2] + 0.006 or self._stuck(position):
                    self._hold = np.array([*self._planned.position[:2], position[2]])
                    self._enter(Phase.CLOSE)
            case Phase.CLOSE:
                if self._steps >= CLOSE_STEPS:
                    self._begin_lift(position)
            case Phase.LIFT:
                self._check_lift(position, late)
            case Phase.CARRY:
                if self._lost(position):
                    self._start()
                elif late or _near(position, self._above_place, 0.01, 0.03):
                    self._enter(Phase.LOWER)
            case Phase.LOWER:
                if self._lost(position):
                    self._start()
                elif late or position[2] < self._release[2] + 0.005 or self._stuck(position):
                    self._release = np.array([*self._release[:2], position[2]])
                    self._held_opening = self._scene.gripper_opening
                    self._enter(Phase.OPEN)
            case Phase.OPEN:
                if self._steps >= OPEN_STEPS or self._scene.gripper_opening > self._held_opening + OPEN_ENOUGH:
                    self._hover = position + np.array([0.0, 0.0, HOVER_HEIGHT])
                    self._enter(Phase.RETREAT)
            case Phase.RETREAT:
                if self._steps >= RETREAT_STEPS:
                    self._start()

    def _target(self, position: Array) -> tuple[Array, float]:
        """Return where the grip site should go now, and the gripper command."""
        match self.phase:
            case Phase.HOVER:
                return self._over_obstacles(position, self._hover, TIP_BELOW), OPEN
            case Phase.RETREAT:
                return self._hover, OPEN
            case Phase.DESCEND:
                return self._planned.position, OPEN
            case Phase.CLOSE:
                return self._hold, CLOSED
            case Phase.LIFT:
                return self._lifted, CLOSED
            case Phase.CARRY:
                return self._over_obstacles(position, self._above_place, self._hang), CLOSED
            case Phase.LOWER:
                return self._release, CLOSED
            case Phase.OPEN:
                return self._release, OPEN

    def _over_obstacles(self, position: Array, target: Array, hang: float) -> Array:
        """Return `target`, raised so that what is `hang` metres below the gripper clears the rest of the way."""
        way = corridor_height(self._obstacles, position[:2], target[:2], CORRIDOR_RADIUS, -np.inf)
        return np.array([*target[:2], max(target[2], way + CARRY_CLEARANCE + hang)])

    def _begin_lift(self, position: Array) -> None:
        """Latch how high what is held must go to get out and over everything on its way."""
        self._aim(position)
        travel = self._over_obstacles(position - self._offset, self._above_place, self._hang)[2]
        self._lifted = np.array([*self._hold[:2], max(travel, position[2] + PICKED_RISE + 0.02)])
        self._enter(Phase.LIFT)

    def _aim(self, position: Array) -> None:
        """Latch how the object sits in the hand, and from that where the gripper must be to release it."""
        scene = self._scene
        self._place = find_place(scene, self._goal)
        self._offset = position - scene.position(self._object)
        self._hang = float(position[2] - scene.boxes(self._object).points()[:, 2].min())
        release_xy = self._place.xy + self._offset[:2]
        release = self._place.release_height(self._hang)
        self._release = np.array([*release_xy, release])
        self._above_place = np.array([*release_xy, max(self._place.rim + CARRY_CLEARANCE + self._hang, release)])

    def _check_lift(self, position: Array, late: bool) -> None:
        if self._lost(position):
            self._excluded.add(self._planned.label)
            self._hover = position + np.array([0.0, 0.0, HOVER_HEIGHT])
            self._enter(Phase.RETREAT)
        elif late or position[2] > self._lifted[2] - 0.02:
            self._aim(position)
            self._enter(Phase.CARRY)

    def _replan_if_moved(self, shift: float) -> bool:
        moved = float(np.linalg.norm(self._scene.position(self._object) - self._origin))
        if moved > shift:
            self._plan()
        return moved > shift

    def _lost(self, position: Array) -> bool:
        return float(np.linalg.norm(position - self._scene.position(self._object) - self._offset)) > LOST_SHIFT

    def _stuck(self, position: Array) -> bool:
        """Say whether a descent has come to rest on something."""
        resting = self._steps > 3 and self._last_height - position[2] < STUCK_MOVE
        self._still = self._still + 1 if resting else 0
        return self._still >= STUCK_STEPS

    def _yaw_error(self) -> float:
        closing = self._scene.gripper_rotation[:, 0]
        wanted = downward_rotation(self._planned.yaw)[:, 0]
        return float(np.arccos(np.clip(closing @ wanted, -1.0, 1.0)))


def _near(position: Array, target: Array, xy: float, z: float) -> bool:
    return float(np.linalg.norm(position[:2] - target[:2])) < xy and abs(float(position[2] - target[2])) < z
