"""Robots as data."""

from dataclasses import replace

import numpy as np
import pytest

from rdvla.data.conventions import robots_contradiction
from rdvla.embodiment import CALVIN, LIBERO
from rdvla.envs.fit import require_fit
from rdvla.envs.toy import ToySuite
from rdvla.errors import ConfigError
from rdvla.policy import PolicyMetadata


@pytest.mark.parametrize("robot", [LIBERO, CALVIN])
@pytest.mark.parametrize("gripper", ["open_is_negative", "open_is_positive", "none"])
def test_what_training_takes_a_simulator_takes(robot, gripper, monkeypatch):
    """One rule: the robot's own convention, or its commands as numbers, unless its gripper takes two values only."""
    monkeypatch.setattr(ToySuite, "embodiment", robot)
    policy = PolicyMetadata("p", tuple(robot.cameras), robot.state_dim, robot.action_dim, 1, {"gripper": gripper})
    reason = robots_contradiction(list(robot.state_names), gripper)
    if gripper == robot.gripper or (gripper == "none" and robot is LIBERO):
        assert reason is None
        require_fit(policy, ToySuite("toy"))
    else:
        assert f"the gripper is '{robot.gripper}'" in reason
        with pytest.raises(ConfigError, match=f"the gripper is {robot.gripper} there"):
            require_fit(policy, ToySuite("toy"))


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


@pytest.mark.parametrize("robot", [LIBERO, CALVIN])
def test_actions_that_say_where_to_go_do_not_fit_a_robot_that_takes_deltas(robot, monkeypatch):
    monkeypatch.setattr(ToySuite, "embodiment", robot)

    def policy(reach):
        extra = {"gripper": robot.gripper, "action_reach": reach}
        return PolicyMetadata("p", tuple(robot.cameras), robot.state_dim, robot.action_dim, 1, extra)

    require_fit(policy([1.0, 0.94, 1.0, 0.3, 0.2, 1.0000001, 2.0]), ToySuite("toy"))  # a gripper may be anything
    with pytest.raises(ConfigError, match=r"deltas lie in -1\.\.1 there.*delta_rx up to 3\.1: they seem to say where"):
        require_fit(policy([0.6, 0.2, 0.9, 3.1, 0.2, 0.1, 1.0]), ToySuite("toy"))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (["up"] * 7, "action must hold numbers, found .'up'"),
        ([[1], [2, 3]], "action must hold numbers"),
        (np.zeros(6), r"action must have shape \[7\], found \[6\]"),
        ([np.inf] * 7, "action has non-finite values"),
    ],
)
def test_what_is_no_action_is_said_to_be_none(action, message):
    with pytest.raises(ConfigError, match=message):
        LIBERO.check_action(action)
