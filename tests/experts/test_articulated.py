"""Drawers and knobs made of boxes: where they are taken and how they move."""

from types import SimpleNamespace

import numpy as np
import pytest

from rdvla.experts.libero.articulated import SWING, MoveJoint, Phase
from rdvla.experts.libero.boxes import Boxes
from rdvla.experts.libero.control import CLOSED, downward_rotation
from rdvla.experts.libero.grasps import TIP_BELOW
from rdvla.experts.libero.joints import Joint
from rdvla.experts.libero.pressing import PressShut
from rdvla.experts.libero.scene import Goal

SLIDE, HINGE = 2, 3


def joint(kind: int, axis: tuple[float, float, float], goal: float, value: float = 0.0) -> Joint:
    model = SimpleNamespace(jnt_qposadr=[0], jnt_bodyid=[5], jnt_type=[kind], jnt_range=np.array([sorted((0.0, goal))]))
    data = SimpleNamespace(qpos=np.array([value]), xaxis=np.array([axis]), xanchor=np.array([[1.0, 0.0, 0.0]]))
    return Joint(model, data, 0, goal)


def upright(*boxes: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Boxes:
    centers, sizes = (np.array(values, dtype=float) for values in zip(*boxes, strict=True))
    return Boxes(centers, np.tile(np.eye(3), (len(boxes), 1, 1)), sizes / 2)


class FakeScene:
    """A fixture of boxes with one joint; the gripper goes wherever it is sent."""

    base = np.array([-0.6, 0.0, 0.9])
    gripper_rotation = downward_rotation(0.0)
    gripper_position = np.array([-0.2, 0.0, 1.2])

    def __init__(self, the_joint: Joint, boxes: Boxes) -> None:
        self._joint, self._boxes = the_joint, boxes

    def joint(self, goal: Goal) -> Joint:
        return self._joint

    def body_boxes(self, body: int) -> Boxes:
        assert body == 5
        return self._boxes

    def obstacle_points(self) -> np.ndarray:
        return np.empty((0, 3))


def drawer() -> FakeScene:
    """A drawer that opens towards +y: its front and, 3 cm before it, a bar along x."""
    boxes = upright(((0.0, -0.2, 1.0), (0.2, 0.01, 0.06)), ((0.0, -0.165, 1.0), (0.08, 0.015, 0.015)))
    return FakeScene(joint(SLIDE, (0.0, -1.0, 0.0), goal=-0.15), boxes)


def knob() -> FakeScene:
    """A disc with a ridge along x on top of it, turning about the vertical."""
    boxes = upright(((0.0, 0.0, 0.91), (0.1, 0.1, 0.01)), ((0.0, 0.0, 0.935), (0.07, 0.02, 0.04)))
    return FakeScene(joint(HINGE, (0.0, 0.0, 1.0), goal=1.3), boxes)


def test_a_slide_moves_poses_along_its_axis() -> None:
    position, rotation = joint(SLIDE, (0.0, -1.0, 0.0), 0.1).moved(np.zeros(3), np.eye(3), -0.15)
    assert position == pytest.approx([0.0, 0.15, 0.0])
    assert rotation == pytest.approx(np.eye(3))


def test_a_hinge_turns_poses_about_its_anchor() -> None:
    position, rotation = joint(HINGE, (0.0, 0.0, 1.0), 0.1).moved(np.array([2.0, 0.0, 0.3]), np.eye(3), np.pi / 2)
    assert position == pytest.approx([1.0, 1.0, 0.3])
    assert rotation @ [1.0, 0.0, 0.0] == pytest.approx([0.0, 1.0, 0.0])


def test_a_drawer_is_taken_by_the_bar_with_the_fingers_above_and_below() -> None:
    skill = MoveJoint(drawer(), Goal("open", ("region",)))  # type: ignore[arg-type]
    skill.start()
    grip, rotation = skill._grip, skill._rotation
    assert grip == pytest.approx([0.0, -0.165, 1.0])
    assert abs(rotation[2, 0]) == pytest.approx(1.0)  # closes along the vertical
    assert rotation[:, 2] == pytest.approx([0.0, -1.0, 0.0])  # comes from the front
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_a_knob_is_taken_by_its_ridge_from_above() -> None:
    skill = MoveJoint(knob(), Goal("turnon", ("stove",)))  # type: ignore[arg-type]
    skill.start()
    assert skill._grip[:2] == pytest.approx([0.0, 0.0], abs=0.005)
    assert 0.915 < skill._grip[2] < 0.95
    assert skill._rotation[:, 2] == pytest.approx([0.0, 0.0, -1.0])
    assert abs(skill._rotation[1, 0]) == pytest.approx(1.0)  # across the ridge


@pytest.mark.parametrize(("start", "ahead"), [(0.6, 0.6 - SWING), (SWING / 2, 0.0)])
def test_a_hand_that_is_not_turned_yet_keeps_its_distance(start: float, ahead: float) -> None:
    scene = drawer()
    skill = MoveJoint(scene, Goal("open", ("region",)))  # type: ignore[arg-type]
    skill.start()
    scene.base = np.array([0.0, 0.5, 0.9])
    scene.gripper_position = skill._standoff + np.array([0.0, start, 0.3])
    skill.start()
    (target, _), _ = skill._target()
    assert target == pytest.approx(scene.gripper_position - np.array([0.0, ahead, 0.0]))


def test_the_hand_moves_with_the_joint_and_lets_go_at_the_goal() -> None:
    scene = drawer()
    skill = MoveJoint(scene, Goal("open", ("region",)))  # type: ignore[arg-type]
    skill.start()
    phases = []
    for _ in range(200):
        if skill.act() is None:
            break
        phases.append(skill.phase)
        (target, rotation), _ = skill._target()
        way = target - scene.gripper_position
        step = way * min(1.0, 0.03 / max(float(np.linalg.norm(way)), 1e-9))
        scene.gripper_position = scene.gripper_position + step
        scene.gripper_rotation = rotation
        if skill.phase is Phase.MOVE:
            scene._joint._data.qpos[0] -= step[1]  # the drawer follows the hand
    assert list(dict.fromkeys(phases)) == list(Phase)[:-1]
    assert scene._joint.value == pytest.approx(-0.15, abs=0.006)


def test_a_stretched_arm_folds_without_going_ahead() -> None:
    scene = drawer()
    skill = MoveJoint(scene, Goal("open", ("region",)))  # type: ignore[arg-type]
    skill.start()
    scene.gripper_rotation = skill._rotation
    skill._standoff = scene.gripper_position = np.array([0.1, 0.05, 1.1])
    skill._enter(Phase.RETREAT)
    assert skill.act() is not None
    assert skill.phase is Phase.FOLD
    assert skill._standoff[0] < 0.05
    assert skill._standoff[1] == pytest.approx(0.05)  # the drawer is ahead, towards -y
    assert skill._standoff[2] > 1.1
    scene.gripper_position = skill._standoff
    assert skill.act() is None


def test_a_hand_that_slips_lets_go() -> None:
    scene = drawer()
    skill = MoveJoint(scene, Goal("open", ("region",)))  # type: ignore[arg-type]
    skill.start()
    for _ in range(200):
        if skill.act() is None:
            break
        (target, scene.gripper_rotation), _ = skill._target()
        scene.gripper_position = target + (np.array([0.0, 0.1, 0.0]) if skill.phase is Phase.MOVE else 0.0)
    assert skill.phase is Phase.FOLD
    assert scene._joint.value == 0.0


def test_a_drawer_is_shut_by_pressing_its_bar_from_the_front() -> None:
    scene = drawer()
    scene._joint = joint(SLIDE, (0.0, -1.0, 0.0), goal=0.002, value=-0.14)
    skill = PressShut(scene, Goal("close", ("region",)))  # type: ignore[arg-type]
    skill.start()
    tips = skill._grip + TIP_BELOW * skill._rotation[:, 2]
    assert tips[1] > -0.1575  # before the bar, whose front this is
    assert tips[[0, 2]] == pytest.approx([0.0, 1.0])
    assert skill._rotation[1, 2] < -0.5  # towards the drawer
    assert skill._rotation[2, 2] < -0.5  # and down, so that the arm has room
    assert skill._target()[1] == CLOSED


def test_a_door_is_shut_from_outside_near_its_free_edge_with_the_hand_above() -> None:
    """The door stands open along -y; it turns about a hinge at its end and shuts towards +x."""
    panel = upright(((1.0, -0.13, 1.0), (0.02, 0.26, 0.2)))
    scene = FakeScene(joint(HINGE, (0.0, 0.0, 1.0), goal=0.0, value=-1.5), panel)
    skill = PressShut(scene, Goal("close", ("oven",)))  # type: ignore[arg-type]
    skill.start()
    assert skill._grip[0] < 0.99 - 0.01
    assert skill._grip[1] == pytest.approx(-0.26 + 0.035, abs=0.005)
    assert 1.1 - 0.04 < skill._grip[2] - TIP_BELOW < 1.1
    skill._hold, skill._held_value = (skill._grip, skill._rotation), -1.5
    way = np.array([0.1, 0.0, 0.0])
    assert skill._slipped(skill._grip + way)
    assert not skill._slipped(skill._grip - way)  # the door swings by itself
