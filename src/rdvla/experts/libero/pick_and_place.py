"""The skill for `in` and `on`: pick an object up and put it where the goal wants it."""

from collections import Counter
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from rdvla.experts.base import NoPlanError
from rdvla.experts.libero.boxes import Array, corridor_height
from rdvla.experts.libero.control import CLOSED, OPEN, action_towards, downward_rotation, rotation_vector
from rdvla.experts.libero.grasps import TIP_BELOW, Grasp, closing_yaw, plan_grasps, wrap_half_turn
from rdvla.experts.libero.hand import count_inside
from rdvla.experts.libero.placing import Place, find_place
from rdvla.experts.libero.scene import Goal, LiberoScene

HOVER_HEIGHT = 0.10  # m above the grasp
ALIGNED = 0.012  # m beside the grasp within which to descend
TURNED = 0.12  # rad, the same for the yaw
CARRY_CLEARANCE = 0.03  # m between what is carried and what it passes over
CORRIDOR_RADIUS = 0.07  # m beside the straight path that counts as on it
REPLAN_SHIFT = 0.008  # m that an object may move before the approach is planned anew
DESCENT_SHIFT = 0.02  # the same while descending, when the fingers may touch it
DESCENT_LEAD = 0.04  # m along the approach that the commanded position is ahead
CLOSE_STEPS = 10
OPEN_STEPS = 20  # at most; the gripper needs about 6 to begin
OPEN_ENOUGH = 0.012  # m between the fingers more than while holding
RETREAT_STEPS = 8
PICKED_RISE = 0.02  # m that a held object must have risen
LOST_SHIFT = 0.06  # m that an object may shift in the hand
STUCK_MOVE = 0.0012  # m per step below which a lowered gripper counts as standing still
STUCK_STEPS = 4
STRIKE_COST = 0.1  # per obstacle point inside the hand where it would let go, e.g. of a cabinet above its drawer,
MOST_STRIKES_COST = 3.0  # at most
CAUGHT = 0.03  # m above the release at which what is held has come to rest on a rim and is not let go of,
CATCHES = 2  # so many times
MAX_YAW = np.deg2rad(120.0)  # beyond this the hand turns the other way round, which looks the same
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
    """Brings one object to where one predicate of the goal wants it, trying again where it fails.

    Attributes:
        phase: what the gripper is doing.
        grasp: how the object is to be taken, or None before `start`.
    """

    retreat_steps = RETREAT_STEPS
    catches = CATCHES

    _hover: Array
    _hold: Array
    _lifted: Array
    _above_place: Array
    _release: Array
    _offset: Array
    _offset_in_hand: Array
    _turn: float
    _hang: float
    _catches = 0

    def __init__(self, scene: LiberoScene, goal: Goal) -> None:
        """Work towards `goal`, an `in` or `on` predicate, in `scene`."""
        self._scene = scene
        self._goal = goal
        self._object = goal.arguments[0]
        self._failures: Counter[str] = Counter()
        self.phase = Phase.HOVER
        self.grasp: Grasp | None = None

    @property
    def precise(self) -> bool:
        """Whether the gripper is descending, closing, lowering or opening."""
        return self.phase in (Phase.DESCEND, Phase.CLOSE, Phase.LOWER, Phase.OPEN)

    def start(self) -> None:
        """Plan from the present state and approach; go on with a descent or a lift that someone else has begun.

        Raises:
            NoPlanError: the object cannot be taken.
        """
        if self._scene.in_hand(self._object):
            self._hold_on()
            return
        found = self._plan()
        begun = [grasp for grasp in found if self._is_descending_to(grasp)]
        if begun:
            self._choose(begun[0])
        self._enter(Phase.DESCEND if begun else Phase.HOVER)

    def act(self) -> NDArray[np.float32] | None:
        """Return the next action `[7]`, or None when the object was put down or the attempt is over.

        Raises:
            NoPlanError: the object cannot be taken (any more).
        """
        position, rotation = self._scene.gripper_position, self._scene.gripper_rotation
        if not self._advance(position):
            return None
        self._steps += 1
        target, gripper = self._target(position)
        self._last_height = float(position[2])
        return action_towards(
            position,
            rotation,
            target,
            self._rotation,
            gripper,
            climb_first=self.phase in (Phase.HOVER, Phase.CARRY),
        )

    @property
    def _planned(self) -> Grasp:
        assert self.grasp is not None
        return self.grasp

    @property
    def _rotation(self) -> Array:
        """How the hand should be now: as for the grasp, and turned to how the object is to be while it is carried."""
        turned = self.phase in (Phase.CARRY, Phase.LOWER, Phase.OPEN, Phase.RETREAT)
        return downward_rotation(self._planned.yaw + (self._turn if turned else 0.0), self._planned.tilt)

    def _find_place(self) -> Place:
        return find_place(self._scene, self._goal)

    def _plan(self) -> list[Grasp]:
        """Plan for the scene as it is, choose the best grasp and return all of them."""
        scene = self._scene
        self._place = self._find_place()
        self._obstacles: Array = scene.obstacle_points(self._object)
        self._origin = scene.position(self._object)
        boxes = scene.boxes(self._object)
        bottom = float(boxes.points()[:, 2].min())
        rise = self._place.support - bottom
        found = plan_grasps(
            boxes,
            self._obstacles,
            scene.base,
            place_offset=np.array([*(self._place.xy - self._origin[:2]), rise]),
            keep=None if self.grasp is None else self.grasp.label,
            failures=self._failures,
        )
        if not found:
            raise NoPlanError(f"no grasp of '{self._object}' is free of obstacles.")
        found.sort(key=lambda grasp: grasp.cost + self._cost_at_the_place(grasp, bottom))
        self._choose(found[0])
        return found

    def _cost_at_the_place(self, grasp: Grasp, bottom: float) -> float:
        """Return what it costs that the hand would strike something where it lets go of what stands at z `bottom`."""
        place = self._place
        offset = _turned(grasp.position[:2] - self._origin[:2], place.turn)
        position = np.array([*(place.xy + offset), place.release_height(float(grasp.position[2]) - bottom)])
        rotation = downward_rotation(grasp.yaw + place.turn, grasp.tilt)
        struck = count_inside(position, rotation, self._obstacles, opened=False)
        return min(STRIKE_COST * struck, MOST_STRIKES_COST)

    def _choose(self, grasp: Grasp) -> None:
        self.grasp = grasp
        self._hover = grasp.position - HOVER_HEIGHT * downward_rotation(grasp.yaw, grasp.tilt)[:, 2]

    def _is_descending_to(self, grasp: Grasp) -> bool:
        position = self._scene.gripper_position
        low = abs(float(position[2] - grasp.position[2])) < HOVER_HEIGHT / 2
        aligned = float(np.linalg.norm(position[:2] - grasp.position[:2])) < ALIGNED
        return low and aligned and self._turn_left(downward_rotation(grasp.yaw, grasp.tilt)) < TURNED

    def _hold_on(self) -> None:
        self.grasp = self._held()
        self._obstacles = self._scene.obstacle_points(self._object)
        self._origin = self._scene.position(self._object)
        self._hold = self._scene.gripper_position
        self._begin_lift(self._hold)

    def _held(self) -> Grasp:
        """Return how the hand holds what it has held before the skill began."""
        yaw = wrap_half_turn(closing_yaw(self._scene.gripper_rotation[:, 0]))
        return Grasp(self._scene.gripper_position, yaw, cost=0.0, label="in hand")

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._steps = 0
        self._still = 0
        self._last_height = np.inf

    def _advance(self, position: Array) -> bool:
        """Go to the next phase when the present one is over; return False when there is none."""
        late = self._steps > PATIENCE
        match self.phase:
            case Phase.HOVER:
                self._replan_if_moved(REPLAN_SHIFT)
                above = self._over_obstacles(position, self._hover, TIP_BELOW)
                if late or (_near(position, above, ALIGNED, 0.02) and self._is_turned):
                    self._enter(Phase.DESCEND)
            case Phase.DESCEND:
                if self._replan_if_moved(DESCENT_SHIFT):
                    self._enter(Phase.HOVER)
                elif late or self._descent_left(position) < 0.006 or self._stuck(position):
                    self._hold = np.array([*self._planned.position[:2], position[2]])
                    self._enter(Phase.CLOSE)
            case Phase.CLOSE:
                if self._steps >= CLOSE_STEPS:
                    self._begin_lift(position)
            case Phase.LIFT:
                self._check_lift(position, late)
            case Phase.CARRY:
                if self._lost(position):
                    self._back_off(position)
                elif late or (_near(position, self._carried(position), 0.01, 0.03) and self._is_turned):
                    self._enter(Phase.LOWER)
            case Phase.LOWER:
                stuck = self._stuck(position)
                if self._lost(position):
                    self._back_off(position)
                elif stuck and self._catches < self.catches and position[2] > self._release[2] + CAUGHT:
                    self._catches += 1
                    self._aim(position)
                    self._enter(Phase.CARRY)
                elif late or position[2] < self._release[2] + 0.005 or stuck:
                    self._release = np.array([*self._release[:2], position[2]])
                    self._held_opening = self._scene.gripper_opening
                    self._enter(Phase.OPEN)
            case Phase.OPEN:
                if self._steps >= OPEN_STEPS or self._scene.gripper_opening > self._held_opening + OPEN_ENOUGH:
                    self._back_off(position)
            case Phase.RETREAT:
                return self._steps < self.retreat_steps
        return True

    def _target(self, position: Array) -> tuple[Array, float]:
        """Return where the grip site should go now, and the gripper command."""
        match self.phase:
            case Phase.HOVER:
                return self._over_obstacles(position, self._hover, TIP_BELOW), OPEN
            case Phase.RETREAT:
                return self._hover, OPEN
            case Phase.DESCEND:
                ahead = max(0.0, self._descent_left(position) - DESCENT_LEAD)
                return self._planned.position - ahead * self._rotation[:, 2], OPEN
            case Phase.CLOSE:
                return self._hold, CLOSED
            case Phase.LIFT:
                return self._lifted, CLOSED
            case Phase.CARRY:
                return self._carried(position), CLOSED
            case Phase.LOWER:
                return self._release, CLOSED
            case Phase.OPEN:
                return self._release, OPEN

    def _over_obstacles(self, position: Array, target: Array, hang: float) -> Array:
        """Return `target`, raised so that what is `hang` metres below the gripper clears the rest of the way."""
        way = corridor_height(self._obstacles, position[:2], target[:2], CORRIDOR_RADIUS, -np.inf)
        return np.array([*target[:2], max(target[2], way + CARRY_CLEARANCE + hang)])

    def _carried(self, position: Array) -> Array:
        """Return where the gripper goes next with the object."""
        return self._over_obstacles(position, self._above_place, self._hang)

    def _begin_lift(self, position: Array) -> None:
        """Latch how high what is held must go to get out and over everything on its way."""
        self._aim(position)
        travel = self._over_obstacles(position - self._offset, self._above_place, self._hang)[2]
        self._lifted = np.array([*self._hold[:2], max(travel, position[2] + PICKED_RISE + 0.02)])
        self._catches = 0
        self._enter(Phase.LIFT)

    def _aim(self, position: Array) -> None:
        """Latch how the object sits in the hand, and from that where the gripper must be to release it."""
        scene = self._scene
        self._place = self._find_place()
        self._offset = position - scene.position(self._object)
        self._offset_in_hand = scene.gripper_rotation.T @ self._offset
        self._turn = self._place.turn
        if abs(self._planned.yaw + self._turn) > MAX_YAW:
            self._turn -= np.pi * float(np.sign(self._turn))
        self._hang = float(position[2] - scene.boxes(self._object).points()[:, 2].min())
        release_xy = self._place.xy + _turned(self._offset[:2], self._turn)
        release = self._place.release_height(self._hang)
        self._release = np.array([*release_xy, release])
        self._above_place = np.array([*release_xy, max(self._place.rim + CARRY_CLEARANCE + self._hang, release)])

    def _back_off(self, position: Array) -> None:
        """Let go and rise, so that the next attempt plans for a scene at rest."""
        self._hover = position - HOVER_HEIGHT * self._rotation[:, 2]
        self._enter(Phase.RETREAT)

    def _check_lift(self, position: Array, late: bool) -> None:
        if self._lost(position):
            self._failures[self._planned.label] += 1
            self._turn = 0.0
            self._back_off(position)
        elif late or position[2] > self._lifted[2] - 0.02:
            self._aim(position)
            self._enter(Phase.CARRY)

    def _replan_if_moved(self, shift: float) -> bool:
        moved = float(np.linalg.norm(self._scene.position(self._object) - self._origin))
        if moved > shift:
            self._plan()
        return moved > shift

    def _lost(self, position: Array) -> bool:
        expected = position - self._scene.gripper_rotation @ self._offset_in_hand
        return float(np.linalg.norm(expected - self._scene.position(self._object))) > LOST_SHIFT

    def _descent_left(self, position: Array) -> float:
        return float((self._planned.position - position) @ self._rotation[:, 2])

    def _stuck(self, position: Array) -> bool:
        """Say whether a descent has come to rest on something."""
        resting = self._steps > 3 and self._last_height - position[2] < STUCK_MOVE
        self._still = self._still + 1 if resting else 0
        return self._still >= STUCK_STEPS

    @property
    def _is_turned(self) -> bool:
        return self._turn_left(self._rotation) < TURNED

    def _turn_left(self, rotation: Array) -> float:
        return float(np.linalg.norm(rotation_vector(rotation @ self._scene.gripper_rotation.T)))


def _near(position: Array, target: Array, xy: float, z: float) -> bool:
    return float(np.linalg.norm(position[:2] - target[:2])) < xy and abs(float(position[2] - target[2])) < z


def _turned(offset: Array, angle: float) -> Array:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([cosine * offset[0] - sine * offset[1], sine * offset[0] + cosine * offset[1]])
