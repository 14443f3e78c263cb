"""Robots as data."""

from dataclasses import replace

import numpy as np
import pytest

from rdvla.embodiment import CALVIN, LIBERO
from rdvla.errors import ConfigError


def test_to_stand_still_is_to_move_by_nothing_and_keep_the_gripper():
    assert LIBERO.stand_still(None).tolist() == [0, 0, 0, 0, 0, 0, -1]  # open
    assert CALVIN.stand_still(None).tolist() == [0, 0, 0, 0, 0, 0, 1]
    holding = LIBERO.stand_still(np.array([0.3, 0, 0, 0, 0.1, 0, 1], np.float32))
    assert holding.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert holding.dtype == np.float32


def test_a_robot_told_where_to_go_stays_there_and_must_have_been_told():
    robot = replace(LIBERO, action_names=("shoulder", "elbow", "gripper"), gripper="open_is_positive")
    assert robot.stand_still(np.array([0.5, 1.5, -1], np.float32)).tolist() == [0.5, 1.5, -1]
    with pytest.raises(ConfigError, match="cannot wait for its first action"):
        robot.stand_still(None)
    deltas = replace(LIBERO, action_names=("delta_x", "delta_y"), gripper="none")
    assert deltas.stand_still(None).tolist() == [0, 0]
