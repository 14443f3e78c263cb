"""The skill for `open`, `turnon` and `turnoff`: take a fixture's handle and move it along its joint."""

from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from rdvla.experts.base import NoPlanError
from rdvla.experts.libero.boxes import Array
from rdvla.experts.libero.control import CLOSED, OPEN, action_towards, downward_rotation, rotation_vector
from rdvla.experts.libero.grasps import plan_grasps
from rdvla.experts.libero.hand import out_of_reach
from rdvla.experts.libero.joints import Joint
from rdvla.experts.libero.scene import Goal, LiberoScene

STANDOFF = 0.08  # m from the handle, against the approach
KNOB_DEPTH = 0.010  # m below its top: parts of a knob that stand up at least this far are taken
GLIDE = 0.1  # m above the standoff that the hand keeps until it is near, to pass over what stands on the way
SWING = 0.15  # m from the standoff, horizontally, that a hand which is not turned yet keeps
NEARLY_TURNED = 0.4  # rad from the orientation at the handle: turning swings the hand, so that is done in free air
TURNED = 0.1
CENTRED = 0.008  # m beside the line to the handle: from here on the hand waits before it goes ahead,
FUNNEL = 4.0  # by this much for every metre more
REACHED = 0.010  # m short of the handle at which the fingers are around it
CLOSE_STEPS = 10
RELEASE_STEPS = 6
LEAD_SLIDE = 0.05  # m that the commanded pose is ahead of the joint
LEAD_HINGE = 0.5  # rad
FREED = 0.04  # m that the hand then draws back from a bar, and
FOLDED = 0.05  # m short of where a stretched arm can bend again: from there on the next skill may turn the hand
SLIPPED = 0.05  # m that the hand may shift on the handle
PATIENCE = 60  # steps after which a phase ends whatever the error


class Phase(Enum):
    """What the gripper is doing."""

    TURN = auto()
    APPROACH = auto()
    REACH = auto()
    CLOSE = auto()
    MOVE = auto()
    RELEASE = auto()
    RETREAT = auto()
    FOLD = auto()


class MoveJoint:
    """Opens a drawer by its bar, or turns a knob about a vertical axis.

    Attributes:
        phase: what the gripper is doing.
    """

    close_steps = CLOSE_STEPS
    waiting_gripper = OPEN
    travels_turning = True

    _hold: tuple[Array, Array]
    _held_value: float

    def __init__(self, scene: LiberoScene, goal: Goal) -> None:
        """Work towards `goal`, an `open` or `turnon` predicate, in `scene`.

        Raises:
            ConfigError: its argument has no joint.
        """
        self._scene = scene
        self._wanted = goal
        self._joint = scene.joint(goal)
        self.phase = Phase.TURN

    @property
    def precise(self) -> bool:
        """Whether the gripper is at the handle."""
        return self.phase in (Phase.REACH, Phase.CLOSE)

    def start(self) -> None:
        """Plan from the present state and approach.

        Raises:
            NoPlanError: the handle cannot be taken.
        """
        self._grip, self._rotation = self._plan()
        self._sign = float(np.sign(self._joint.goal - self._joint.value))
        self._standoff = self._grip - STANDOFF * self._rotation[:, 2]
        start = self._scene.gripper_position
        start = start - out_of_reach(start, self._scene.gripper_rotation, self._scene.base)
        way = self._standoff[:2] - start[:2]
        share = max(0.0, 1.0 - SWING / max(float(np.linalg.norm(way)), SWING)) if self.travels_turning else 0.0
        self._turning_point = np.array([*(start[:2] + share * way), max(start[2], self._standoff[2] + GLIDE)])
        self._enter(Phase.TURN)

    def act(self) -> NDArray[np.float32] | None:
        """Return the next action `[7]`, or None when the joint is where it should be or the attempt is over."""
        position, rotation = self._scene.gripper_position, self._scene.gripper_rotation
        if not self._advance(position, rotation):
            return None
        self._steps += 1
        (target, target_rotation), gripper = self._target()
        climb_first = self.phase is Phase.APPROACH
        return action_towards(position, rotation, target, target_rotation, gripper, climb_first=climb_first)

    def _plan(self) -> tuple[Array, Array]:
        """Return the pose in which the handle is taken."""
        plan = _knob_grip if self._joint.hinge else _bar_grip
        return plan(self._scene, self._joint)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._steps = 0

    def _advance(self, position: Array, rotation: Array) -> bool:
        """Go to the next phase when the present one is over; return False when there is none."""
        late = self._steps > PATIENCE
        match self.phase:
            case Phase.TURN:
                if late or self._turn_left(rotation) < NEARLY_TURNED:
                    self._enter(Phase.APPROACH)
            case Phase.APPROACH:
                turned = self._turn_left(rotation) < TURNED
                if late or (turned and np.linalg.norm(position - self._standoff) < 0.015):
                    self._enter(Phase.REACH)
            case Phase.REACH:
                if self._to_go(position)[0] < REACHED:
                    self._enter(Phase.CLOSE)
                elif late:
                    self._enter(Phase.RELEASE)
            case Phase.CLOSE:
                if self._steps >= self.close_steps:
                    self._hold, self._held_value = (position, rotation), self._joint.value
                    self._enter(Phase.MOVE)
            case Phase.MOVE:
                if late or self._slipped(position) or self._is_moved:
                    self._enter(Phase.RELEASE)
            case Phase.RELEASE:
                if self._steps >= RELEASE_STEPS:
                    back = STANDOFF if self._joint.hinge else FREED
                    self._standoff = position - back * rotation[:, 2]
                    self._enter(Phase.RETREAT)
            case Phase.RETREAT:
                if late or np.linalg.norm(position - self._standoff) < 0.015:
                    self._standoff = self._folded(position, rotation)
                    self._enter(Phase.FOLD)
                    return self._advance(position, rotation)
            case Phase.FOLD:
                return not late and bool(np.linalg.norm((position - self._standoff)[:2]) > FOLDED)
        return True

    @property
    def _is_moved(self) -> bool:
        return self._sign * (self._joint.goal - self._joint.value) <= 0

    def _slipped(self, position: Array) -> bool:
        return float(np.linalg.norm(position - self._expected)) > SLIPPED

    @property
    def _expected(self) -> Array:
        """Where the hand would be now if it had moved with the joint: `[3]`."""
        return self._joint.moved(*self._hold, self._joint.value - self._held_value)[0]

    def _to_go(self, position: Array) -> tuple[float, float]:
        """Return how far (m) the handle is ahead of the hand, and how far to its side."""
        way = self._grip - position
        ahead = float(way @ self._rotation[:, 2])
        return ahead, float(np.linalg.norm(way - ahead * self._rotation[:, 2]))

    def _turn_left(self, rotation: Array) -> float:
        return float(np.linalg.norm(rotation_vector(self._rotation @ rotation.T)))

    @property
    def _lead(self) -> float:
        return LEAD_HINGE if self._joint.hinge else LEAD_SLIDE

    def _target(self) -> tuple[tuple[Array, Array], float]:
        """Return the pose to go to now, and the gripper command."""
        match self.phase:
            case Phase.TURN:
                return (self._turning_point, self._rotation), self.waiting_gripper
            case Phase.APPROACH:
                away = float(np.linalg.norm((self._standoff - self._scene.gripper_position)[:2]))
                above = np.array([*self._standoff[:2], self._standoff[2] + min(away, GLIDE)])
                return (above, self._rotation), self.waiting_gripper
            case Phase.REACH:
                _, aside = self._to_go(self._scene.gripper_position)
                wait = min(STANDOFF, FUNNEL * max(0.0, aside - CENTRED))
                return (self._grip - wait * self._rotation[:, 2], self._rotation), self.waiting_gripper
            case Phase.CLOSE:
                return (self._grip, self._rotation), CLOSED
            case Phase.MOVE:
                ahead = self._joint.value + self._sign * self._lead
                return self._joint.moved(*self._hold, ahead - self._held_value), CLOSED
            case Phase.RELEASE:
                return (self._scene.gripper_position, self._rotation), self.waiting_gripper
            case Phase.RETREAT | Phase.FOLD:
                return (self._standoff, self._rotation), self.waiting_gripper

    def _folded(self, position: Array, rotation: Array) -> Array:
        """Return where the hand goes, without going ahead, for an arm that can bend again."""
        outward = out_of_reach(position, rotation, self._scene.base)
        inward = -outward + min(0.0, float(outward @ rotation[:, 2])) * rotation[:, 2]
        rise = GLIDE if outward.any() else 0.0  # so that the next skill finds the hand at a height to travel
        return np.asarray(position + inward + np.array([0.0, 0.0, rise]))


def _bar_grip(scene: LiberoScene, joint: Joint) -> tuple[Array, Array]:
    """Return position `[3]` and rotation `[3, 3]` of a gripper around the bar that sticks out furthest.

    The hand comes horizontally and straight on: so it stays clear of what stands beside, above and below.
    """
    boxes, outward = scene.body_boxes(joint.body), joint.direction
    reach = [float((boxes.only(i).points() @ outward).max()) for i in range(len(boxes.centers))]
    bar = int(np.argmax(reach))
    along = boxes.rotations[bar][:, int(np.argmax(boxes.halves[bar]))]
    return boxes.centers[bar], facing(scene, -outward, np.cross(-outward, along))


def facing(scene: LiberoScene, approach: Array, closing: Array) -> Array:
    """Return the rotation `[3, 3]` with that approach and closing axis, of the two the one with less turning."""
    closing = closing / np.linalg.norm(closing)
    options = [np.stack([c, np.cross(approach, c), approach], axis=1) for c in (closing, -closing)]
    return max(options, key=lambda option: float(np.trace(option @ scene.gripper_rotation.T)))


def _knob_grip(scene: LiberoScene, joint: Joint) -> tuple[Array, Array]:
    """Return position `[3]` and rotation `[3, 3]` of a gripper around the upper part of a knob, from above."""
    boxes = scene.body_boxes(joint.body)
    tops = np.array([float(boxes.only(i).points()[:, 2].max()) for i in range(len(boxes.centers))])
    upper = tops > tops.max() - KNOB_DEPTH
    grasps = plan_grasps(boxes.only(upper), scene.obstacle_points(), scene.base)
    if not grasps:
        raise NoPlanError("the knob is too wide for the gripper.")
    return grasps[0].position, downward_rotation(grasps[0].yaw)
