"""The proportional controller."""

import numpy as np
import pytest

from rdvla.experts.libero.control import MAX_SPEED, action_towards, downward_rotation, rotation_vector


def turn(axis: int, angle: float) -> np.ndarray:
    rotation = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation[first, first] = rotation[second, second] = np.cos(angle)
    rotation[second, first], rotation[first, second] = np.sin(angle), -np.sin(angle)
    return rotation


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, -2.5, np.pi])
def test_rotation_vectors(axis: int, angle: float) -> None:
    expected = np.zeros(3)
    expected[axis] = angle
    assert rotation_vector(turn(axis, angle)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("yaw", [0.0, 0.7, -1.5])
def test_a_downward_gripper_is_a_rotation_that_closes_along_its_axis(yaw: float) -> None:
    rotation = downward_rotation(yaw)
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    assert rotation[:, 2] == pytest.approx([0.0, 0.0, -1.0])
    assert rotation[:2, 0] == pytest.approx([-np.sin(yaw), np.cos(yaw)])


def towards(target: tuple[float, float, float], *, climb_first: bool = False) -> np.ndarray:
    down = downward_rotation(0.0)
    return action_towards(np.zeros(3), down, np.array(target), down, -1.0, climb_first=climb_first)


def test_nothing_to_do_means_no_motion() -> None:
    assert towards((0.0, 0.0, 0.0)).tolist() == [0, 0, 0, 0, 0, 0, -1]


def test_speed_is_limited_without_bending_the_path() -> None:
    action = towards((0.3, 0.4, 0.0))
    assert action[:3] == pytest.approx([0.6 * MAX_SPEED, 0.8 * MAX_SPEED, 0.0])


def test_a_long_way_does_not_delay_a_rise() -> None:
    assert towards((1.0, 0.0, 0.01))[2] == pytest.approx(0.01 * 2.5 / 0.05)


def test_far_below_it_climbs_before_it_travels() -> None:
    assert towards((0.3, 0.0, 0.07), climb_first=True)[0] == pytest.approx(0.0)
    assert towards((0.3, 0.0, 0.045), climb_first=True)[0] == pytest.approx(MAX_SPEED / 2)
    assert towards((0.3, 0.0, 0.02), climb_first=True)[0] == pytest.approx(MAX_SPEED)
