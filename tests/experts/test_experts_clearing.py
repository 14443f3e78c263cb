"""What an opening drawer would hang over is put where it can still be taken."""

from types import SimpleNamespace

import numpy as np
import pytest

from rdvla.experts.base import NoPlanError
from rdvla.experts.libero.boxes import Array, Boxes
from rdvla.experts.libero.clearing import Clear, is_covered
from rdvla.experts.libero.joints import Joint
from rdvla.experts.libero.scene import Goal


def box(center: tuple[float, float, float], size: tuple[float, float, float]) -> Boxes:
    return Boxes(np.array([center]), np.eye(3)[None], np.array([size]) / 2)


class Table:
    """A block on a table, and a drawer at y = -0.2 that opens towards +y, 0.16 m at most, above the block's height."""

    base = np.array([-0.6, 0.0, 0.9])
    gripper_position = np.array([-0.2, 0.0, 1.2])

    def __init__(self, block: tuple[float, float], *others: Boxes) -> None:
        self.block = np.array([*block, 0.93])
        self.drawer = box((0.0, -0.25, 1.05), (0.3, 0.1, 0.06))
        self.others = others
        model = SimpleNamespace(jnt_qposadr=[0], jnt_bodyid=[5], jnt_type=[2], jnt_range=np.array([[-0.16, 0.0]]))
        data = SimpleNamespace(qpos=np.zeros(1), xaxis=np.array([[0.0, -1.0, 0.0]]), xanchor=np.zeros((1, 3)))
        self.the_joint = Joint(model, data, 0, -0.15)

    def position(self, name: str) -> Array:
        return self.block

    def boxes(self, name: str) -> Boxes:
        return box(tuple(self.block), (0.05, 0.05, 0.06))

    def body_boxes(self, body: int) -> Boxes:
        return self.drawer

    def obstacle_points(self, target: str) -> Array:
        return np.concatenate([boxes.points(0.015) for boxes in (self.drawer, *self.others)])

    def joint(self, goal: Goal) -> Joint:
        return self.the_joint


def clear(table: Table) -> Array:
    return Clear(table, Goal("clear", ("block", "drawer")))._find_place().xy  # type: ignore[arg-type]


@pytest.mark.parametrize(("block", "covered"), [((0.0, -0.08), True), ((0.0, 0.15), False)])
def test_what_the_drawer_will_hang_over_is_covered(block: tuple[float, float], covered: bool) -> None:
    assert is_covered(Table(block), "block", "drawer") is covered  # type: ignore[arg-type]


def test_it_goes_to_the_nearest_spot_from_which_it_can_be_taken() -> None:
    table = Table((0.0, -0.08))
    spot = clear(table)
    assert np.linalg.norm(spot - table.block[:2]) < 0.25
    table.block = np.array([*spot, 0.93])
    assert not is_covered(table, "block", "drawer")  # type: ignore[arg-type]


def test_another_object_is_not_pushed_away() -> None:
    free = clear(Table((0.0, -0.08)))
    beside = clear(Table((0.0, -0.08), box((*free, 0.95), (0.06, 0.06, 0.1))))
    assert np.linalg.norm(beside - free) > 0.05


def test_a_crowded_table_is_said() -> None:
    with pytest.raises(NoPlanError, match="no free spot for 'block', which is in the way of opening 'drawer'"):
        clear(Table((0.0, -0.08), box((0.0, 0.1, 0.95), (1.0, 0.9, 0.1))))
