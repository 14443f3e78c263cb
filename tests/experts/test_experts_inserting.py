"""Under a roof: which way in, by which end the object is held, and that the hand stays outside."""

from types import SimpleNamespace

import numpy as np
import pytest

from rdvla.experts.libero.boxes import Boxes
from rdvla.experts.libero.control import downward_rotation
from rdvla.experts.libero.grasps import TIP_BELOW
from rdvla.experts.libero.hand import count_inside
from rdvla.experts.libero.inserting import TILT, Insert
from rdvla.experts.libero.pressing import GAP
from rdvla.experts.libero.pushing_in import LOW, PushIn, stands_before
from rdvla.experts.libero.scene import Goal


def boxes(*parts: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Boxes:
    centers, sizes = (np.array(values, dtype=float) for values in zip(*parts, strict=True))
    return Boxes(centers, np.tile(np.eye(3), (len(parts), 1, 1)), sizes / 2)


OVEN = boxes(
    ((0.0, 0.4, 0.01), (0.3, 0.2, 0.02)),
    ((0.0, 0.4, 0.19), (0.3, 0.2, 0.02)),
    ((-0.14, 0.4, 0.1), (0.02, 0.2, 0.2)),
    ((0.14, 0.4, 0.1), (0.02, 0.2, 0.2)),
    ((0.0, 0.49, 0.1), (0.3, 0.02, 0.2)),
)
"""Open towards -y."""

PAN = boxes(((0.0, 0.0, 0.03), (0.1, 0.1, 0.06)), ((0.0, -0.09, 0.04), (0.02, 0.08, 0.02)))
"""Its handle points to -y."""


class Kitchen:
    """An oven with a region inside, and a pan in front of it."""

    base = np.array([-0.6, 0.0, 0.0])
    gripper_rotation = downward_rotation(np.pi / 2, float(TILT))
    gripper_position = np.array([0.0, -0.09, 0.08])

    def is_region(self, name: str) -> bool:
        return name == "inside"

    def walls(self, region: str) -> Boxes:
        return OVEN

    def position(self, name: str) -> np.ndarray:
        return np.array([0.0, 0.4, 0.1]) if name == "inside" else np.array([0.0, 0.0, 0.0])

    def region_half_size(self, region: str) -> np.ndarray:
        return np.array([0.12, 0.08, 0.08])

    def boxes(self, name: str) -> Boxes:
        return PAN

    def obstacle_points(self, name: str) -> np.ndarray:
        return OVEN.points(0.015)

    def in_hand(self, name: str) -> bool:
        return False


class Holding(Kitchen):
    """The pan is in the hand already."""

    def in_hand(self, name: str) -> bool:
        return True


def pan_in_oven(kitchen: Kitchen) -> Insert:
    skill = Insert(kitchen, Goal("in", ("pan", "inside")))  # type: ignore[arg-type]
    skill.start()
    return skill


def test_a_place_with_a_roof_needs_it() -> None:
    assert Insert.suits(Kitchen(), Goal("in", ("pan", "inside")))  # type: ignore[arg-type]
    assert not Insert.suits(Kitchen(), Goal("in", ("pan", "pot")))  # type: ignore[arg-type]


def test_it_goes_in_where_it_is_open_and_holds_the_outer_end() -> None:
    skill = pan_in_oven(Kitchen())
    assert skill._into.tolist() == [0.0, 1.0, 0.0]
    assert skill._planned.position[1] < -0.05  # the handle
    assert skill._planned.yaw == pytest.approx(np.pi / 2, abs=0.3)
    assert skill._planned.tilt == pytest.approx(TILT)


@pytest.mark.parametrize("kitchen", [Kitchen(), Holding()], ids=["grasped", "held from the start"])
def test_the_pan_ends_inside_and_the_hand_touches_nothing(kitchen: Kitchen) -> None:
    skill = pan_in_oven(kitchen)
    skill._aim(Kitchen.gripper_position)
    pan = skill._release - skill._offset
    assert 0.33 < pan[1] < 0.41
    assert abs(pan[0]) < 0.06
    assert pan[2] == pytest.approx(0.032, abs=0.003)
    rotation = downward_rotation(skill._planned.yaw + skill._turn, float(TILT))
    assert count_inside(skill._release, rotation, OVEN.points(0.015), opened=False) == 0
    assert (skill._above_place - skill._offset)[1] < 0.3 - 0.05  # all of it before the opening
    assert skill._above_place[2] == pytest.approx(skill._release[2])


@pytest.mark.parametrize(("yaw", "tilt"), [(90, 60), (100, 60), (-100, 60), (90, 0), (180, 0), (20, 10)])
def test_a_hand_that_holds_the_pan_already_lifts_it_as_it_is(yaw: float, tilt: float) -> None:
    kitchen = Holding()
    kitchen.gripper_rotation = downward_rotation(np.deg2rad(yaw), np.deg2rad(tilt))
    np.testing.assert_allclose(pan_in_oven(kitchen)._rotation, kitchen.gripper_rotation, atol=1e-9)


def test_what_is_inside_a_hand_is_counted() -> None:
    pointing_down = downward_rotation(0.0)
    points = np.array([[0.0, 0.0, 0.06], [0.0, 0.09, 0.06], [0.0, 0.05, 0.0], [0.0, 0.0, 0.0], [0.0, 0.2, 0.06]])
    inside = [count_inside(np.zeros(3), pointing_down, point[None], opened=True) for point in points]
    assert inside == [1, 1, 1, 0, 0]  # palm, palm, finger, between the fingers, beside the hand


class Late(Kitchen):
    """The pan stands with its middle 6 cm before the region, or where it is put."""

    pan = (0.0, 0.26, 0.02)

    def __init__(self) -> None:
        self.problem = SimpleNamespace(obj_body_id={"pan": 7})

    def position(self, name: str) -> np.ndarray:
        return super().position(name) if name == "inside" else np.array(self.pan)

    def boxes(self, name: str) -> Boxes:
        return Boxes(PAN.centers + np.array(self.pan), PAN.rotations, PAN.halves)

    def body_boxes(self, body: int) -> Boxes:
        return self.boxes("pan")


PAN_IN = Goal("in", ("pan", "inside"))


@pytest.mark.parametrize(
    ("pan", "expected"),
    [
        ((0.0, 0.26, 0.02), True),
        ((0.05, 0.26, 0.02), True),
        ((0.0, 0.26, -0.05), False),  # below the floor: it stands on the table
        ((0.0, 0.1, 0.02), False),  # too far out
        ((0.2, 0.26, 0.02), False),  # beside the opening
        ((0.0, 0.45, 0.02), False),  # beyond the middle
    ],
)
def test_what_stands_before_its_place(pan: tuple[float, float, float], expected: bool) -> None:
    kitchen = Late()
    kitchen.pan = pan
    assert stands_before(kitchen, PAN_IN) is expected  # type: ignore[arg-type]


def test_what_is_in_the_hand_is_not_pushed() -> None:
    kitchen = Late()
    kitchen.in_hand = lambda name: True  # type: ignore[method-assign]
    assert not stands_before(kitchen, PAN_IN)  # type: ignore[arg-type]


def test_it_is_pushed_from_outside_low_and_far_enough() -> None:
    skill = PushIn(Late(), Goal("push", PAN_IN.arguments))  # type: ignore[arg-type]
    skill.start()
    tips = skill._grip + TIP_BELOW * skill._rotation[:, 2]
    assert tips[1] == pytest.approx(0.26 - 0.13 - GAP)  # before the handle's end
    assert tips[2] <= 0.02 + LOW + 1e-9
    assert skill._rotation[1, 2] > 0.8  # it leans in
    assert skill._joint.goal == pytest.approx(0.14)
    skill._scene.pan = (0.0, 0.31, 0.02)  # type: ignore[attr-defined]
    assert skill._joint.value == pytest.approx(0.05)
