"""Where objects are put: beside others, turned to fit, clear of walls."""

import numpy as np
import pytest

from rdvla.experts.libero.boxes import Boxes
from rdvla.experts.libero.placing import Place, find_place
from rdvla.experts.libero.scene import Goal


def turned(yaw: float) -> np.ndarray:
    return np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])


def box(center: tuple[float, float, float], size: tuple[float, float, float], yaw: float = 0.0) -> Boxes:
    return Boxes(np.array([center]), turned(yaw)[None], np.array([size]) / 2)


def joined(*parts: Boxes) -> Boxes:
    return Boxes(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("centers", "rotations", "halves")))


class Shelf:
    """A region of 16 x 16 cm on a plate at the origin, and objects given by their boxes."""

    def __init__(self, plate: Boxes, half: tuple[float, float], *goals: Goal, **objects: Boxes) -> None:
        self.goals, self._plate, self._half, self._objects = goals, plate, half, objects

    def is_region(self, name: str) -> bool:
        return name == "place"

    def parent(self, region: str) -> str:
        return "plate"

    def walls(self, region: str) -> Boxes:
        return self._plate

    def position(self, name: str) -> np.ndarray:
        return np.zeros(3) if name == "place" else self.boxes(name).centers[0]

    def region_half_size(self, region: str) -> np.ndarray:
        return np.array([*self._half, 0.01])

    def boxes(self, name: str) -> Boxes:
        return self._plate if name == "plate" else self._objects[name]

    def obstacle_points(self, target: str) -> np.ndarray:
        others = [boxes.points() for name, boxes in self._objects.items() if name != target]
        return np.concatenate([self._plate.points(), *others])


PLATE = box((0.0, 0.0, -0.005), (0.2, 0.2, 0.01))
POTS = tuple(Goal("on", (name, "place")) for name in ("first", "second"))


def test_objects_that_share_a_place_stand_side_by_side() -> None:
    pot = box((0.5, 0.0, 0.05), (0.07, 0.1, 0.1))
    scene = Shelf(PLATE, (0.08, 0.08), *POTS, first=pot, second=box((0.5, 0.3, 0.05), (0.07, 0.1, 0.1)))
    first, second = (find_place(scene, goal) for goal in POTS)  # type: ignore[arg-type]
    assert second.xy[0] - first.xy[0] > 0.07
    assert max(abs(first.xy[0]), abs(second.xy[0])) <= 0.06 + 1e-9
    assert first.support == pytest.approx(0.0, abs=1e-9)


def test_what_stands_there_already_is_avoided() -> None:
    there = box((0.03, 0.0, 0.05), (0.06, 0.06, 0.1))
    scene = Shelf(PLATE, (0.08, 0.08), POTS[0], first=box((0.5, 0.0, 0.05), (0.05, 0.05, 0.1)), other=there)
    place = find_place(scene, POTS[0])  # type: ignore[arg-type]
    assert np.abs(place.xy - [0.03, 0.0]).max() > 0.055


def test_a_long_thing_is_turned_to_fit_a_narrow_compartment() -> None:
    walls = [box((x, 0.0, 0.05), (0.01, 0.2, 0.1)) for x in (-0.035, 0.035)]
    compartment = joined(PLATE, *walls)
    yaw = np.deg2rad(25.0)
    scene = Shelf(compartment, (0.03, 0.06), POTS[0], first=box((0.5, 0.0, 0.06), (0.1, 0.03, 0.12), yaw))
    place = find_place(scene, POTS[0])  # type: ignore[arg-type]
    assert abs(np.cos(yaw + place.turn)) == pytest.approx(0.0, abs=0.02)  # along y
    assert place.rim == pytest.approx(0.1)


def test_deep_places_are_filled_from_above_their_rim() -> None:
    assert Place(np.zeros(2), support=0.0, rim=0.02).release_height(0.05) == pytest.approx(0.058)
    assert Place(np.zeros(2), support=0.0, rim=0.1).release_height(0.05) == pytest.approx(0.12)
