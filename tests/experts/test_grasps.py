"""Grasp planning on made-up boxes."""

from types import SimpleNamespace

import numpy as np
import pytest

from rdvla.experts.libero.boxes import Boxes, corridor_height, top_height
from rdvla.experts.libero.control import downward_rotation
from rdvla.experts.libero.grasps import Grasp, closing_axis, horizontal_reach, plan_grasps, wrap_half_turn
from rdvla.experts.libero.hand import count_inside
from rdvla.experts.libero.pick_and_place import PickAndPlace
from rdvla.experts.libero.placing import Place
from rdvla.experts.libero.scene import Goal

BASE = np.array([-0.6, 0.0, 0.0])
NOTHING = np.empty((0, 3))


def turned(yaw: float) -> np.ndarray:
    return np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])


def box(center: tuple[float, float, float], size: tuple[float, float, float], yaw: float = 0.0) -> Boxes:
    return Boxes(np.array([center]), turned(yaw)[None], np.array([size]) / 2)


def bowl(x: float, y: float, radius: float = 0.047, height: float = 0.05) -> Boxes:
    """A ring of 24 upright walls."""
    angles = np.arange(0, 2 * np.pi, np.pi / 12)
    centers = [(x + radius * np.cos(a), y + radius * np.sin(a), height / 2) for a in angles]
    halves = np.tile([0.002, 0.008, height / 2], (len(angles), 1))
    return Boxes(np.array(centers), np.array([turned(a) for a in angles]), halves)


def best(boxes: Boxes, obstacles: np.ndarray = NOTHING, **options: object) -> Grasp:
    return plan_grasps(boxes, obstacles, BASE, **options)[0]  # type: ignore[arg-type]


def test_points_cover_the_box_with_its_corners() -> None:
    points = box((1.0, 2.0, 3.0), (0.1, 0.2, 0.3)).points(0.05)
    assert points.min(0) == pytest.approx([0.95, 1.9, 2.85])
    assert points.max(0) == pytest.approx([1.05, 2.1, 3.15])


def test_a_can_is_taken_from_its_middle_without_turning() -> None:
    grasp = best(box((0.05, -0.1, 0.05), (0.06, 0.06, 0.1)))
    assert grasp.position == pytest.approx([0.05, -0.1, 0.07], abs=0.003)
    assert grasp.yaw == pytest.approx(0.0)


def test_a_flat_thing_is_taken_near_its_bottom() -> None:
    grasp = best(box((0.0, 0.0, 0.009), (0.08, 0.04, 0.018)))
    assert 0.01 < grasp.position[2] < 0.018


@pytest.mark.parametrize("yaw", [0.0, 0.4, -0.7, 1.2])
def test_the_fingers_close_on_the_narrow_sides(yaw: float) -> None:
    grasp = best(box((0.0, 0.0, 0.03), (0.12, 0.04, 0.06), yaw))
    narrow = np.array([-np.sin(yaw), np.cos(yaw)])
    assert abs(closing_axis(grasp.yaw) @ narrow) == pytest.approx(1.0, abs=0.01)


def test_a_neighbour_where_a_finger_would_go_turns_the_grasp() -> None:
    can = box((0.0, 0.0, 0.05), (0.05, 0.05, 0.1))
    free, neighbour = best(can), box((0.0, 0.055, 0.06), (0.03, 0.03, 0.12)).points()
    blocked = best(can, neighbour)
    assert free.yaw == pytest.approx(0.0)
    assert abs(blocked.yaw) > 0.4


def test_a_neighbour_beside_a_long_thing_shifts_the_grasp() -> None:
    bar = box((0.0, 0.0, 0.01), (0.1, 0.04, 0.02))
    grasp = best(bar, box((0.025, 0.1, 0.04), (0.03, 0.1, 0.08)).points())
    assert grasp.position[0] == pytest.approx(-0.02, abs=0.005)


def test_a_bowl_is_taken_by_its_rim_with_the_fingers_closing_radially() -> None:
    grasp = best(bowl(0.0, 0.0))
    outward = grasp.position[:2] / np.linalg.norm(grasp.position[:2])
    assert np.linalg.norm(grasp.position[:2]) == pytest.approx(0.047, abs=0.004)
    assert abs(outward @ closing_axis(grasp.yaw)) == pytest.approx(1.0, abs=0.02)
    assert 0.02 < grasp.position[2] < 0.04


def test_a_bowl_far_out_is_taken_from_the_side_of_the_robot() -> None:
    near, far = best(bowl(-0.2, 0.0)), best(bowl(0.2, 0.0))
    assert abs(near.yaw) < 0.1
    assert far.position[0] < 0.2 - 0.02


@pytest.mark.parametrize("front", [1.0, 0.195])
def test_a_hand_that_would_strike_something_where_it_lets_go_takes_another_grasp(
    front: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cabinet stands behind the place, its front at y = `front`."""
    start, end = np.array([0.05, -0.2, 0.0]), np.array([0.05, 0.15])
    cabinet = box((0.05, front + 0.05, 0.2), (0.4, 0.1, 0.4)).points(0.015)
    scene = SimpleNamespace(
        base=BASE, boxes=lambda _: bowl(*start[:2]), position=lambda _: start, obstacle_points=lambda _: cabinet
    )
    skill = PickAndPlace(scene, Goal("in", ("bowl", "drawer")))  # type: ignore[arg-type]
    monkeypatch.setattr(skill, "_find_place", lambda: Place(end, 0.0, 0.06))
    skill._plan()
    grasp, plain = skill._planned, best(bowl(*start[:2]))
    there = [np.array([*(end + g.position[:2] - start[:2]), 0.08]) for g in (grasp, plain)]
    struck = [
        count_inside(position, downward_rotation(g.yaw), cabinet, opened=False)
        for position, g in zip(there, (grasp, plain), strict=True)
    ]
    assert struck[0] == 0
    assert (grasp.label == plain.label) is (struck[1] == 0) is (front == 1.0)


def test_small_shifts_give_the_same_grasp() -> None:
    rng = np.random.default_rng(0)
    wall = box((-0.1, -0.2, 0.1), (0.3, 0.1, 0.2)).points()
    labels = {best(bowl(*(np.array([-0.1, 0.0]) + rng.uniform(-0.005, 0.005, 2))), wall).label for _ in range(10)}
    assert len(labels) == 1


def test_the_grasp_planned_before_is_kept_unless_it_fails() -> None:
    grasps = plan_grasps(bowl(-0.1, 0.0), NOTHING, BASE)
    second = next(grasp.label for grasp in grasps[1:] if grasp.cost < grasps[0].cost + 0.45)
    assert best(bowl(-0.1, 0.0), keep=second).label == second
    assert best(bowl(-0.1, 0.0), keep=second, failures={second: 1}).label == grasps[0].label


def test_a_failed_grasp_is_tried_again_when_all_others_are_much_worse() -> None:
    can = box((0.0, 0.0, 0.05), (0.05, 0.05, 0.1))
    walls = [box((0.0, y, 0.1), (0.2, 0.02, 0.2)).points() for y in (-0.075, 0.075)]
    only = best(can, np.concatenate(walls))
    assert best(can, np.concatenate(walls), failures={only.label: 1}).label == only.label
    free = best(can)
    assert best(can, failures={free.label: 2}).label != free.label


def test_a_blocked_grasp_is_the_last_resort() -> None:
    can = box((0.0, 0.0, 0.05), (0.05, 0.05, 0.1))
    walls = [
        box((0.055 * np.cos(a), 0.055 * np.sin(a), 0.1), (0.02, 0.02, 0.2)).points() for a in np.arange(0, 6.3, 0.2)
    ]
    assert all(grasp.cost > 5.0 for grasp in plan_grasps(can, np.concatenate(walls), BASE))


def test_reach_shrinks_with_height() -> None:
    assert 0.7 < horizontal_reach(0.1) < 0.76
    assert horizontal_reach(0.5) < horizontal_reach(0.3) < horizontal_reach(0.13)


@pytest.mark.parametrize(
    ("angle", "wrapped"), [(0.0, 0.0), (np.pi, 0.0), (3 * np.pi / 4, -np.pi / 4), (np.pi / 2, np.pi / 2)]
)
def test_half_a_turn_looks_the_same(angle: float, wrapped: float) -> None:
    assert wrap_half_turn(angle) == pytest.approx(wrapped)


def test_heights_along_a_path() -> None:
    points = np.array([[0.5, 0.0, 0.3], [0.5, 0.2, 0.9]])
    start, end = np.zeros(2), np.array([1.0, 0.0])
    assert corridor_height(points, start, end, 0.1, 0.0) == pytest.approx(0.3)
    assert corridor_height(points, start, end, 0.25, 0.0) == pytest.approx(0.9)
    assert corridor_height(points, start, start, 0.1, -1.0) == pytest.approx(-1.0)
    assert top_height(points, np.array([0.5, 0.0]), 0.1, 0.0) == pytest.approx(0.3)


def test_a_pot_that_is_too_wide_is_taken_by_its_handle() -> None:
    pot, handle = box((0.0, 0.0, 0.07), (0.09, 0.09, 0.14)), box((0.0, -0.07, 0.11), (0.015, 0.06, 0.03))
    both = Boxes(*(np.concatenate([getattr(b, f) for b in (pot, handle)]) for f in ("centers", "rotations", "halves")))
    grasp = best(both)
    assert grasp.position[1] < -0.04
    assert abs(closing_axis(grasp.yaw)[0]) > 0.7
