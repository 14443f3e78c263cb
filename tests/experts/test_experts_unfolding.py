"""An arm that stays stretched is bent by turning the hand towards the base."""

from types import SimpleNamespace

import numpy as np
import pytest

from rdvla.experts.libero.control import MAX_TURN, downward_rotation
from rdvla.experts.libero.unfolding import BENT, MOST_STEPS, PATIENCE, STRETCHED, Unfold

ACTION = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=np.float32)


def scene(elbow: float) -> SimpleNamespace:
    base, position = np.array([-0.6, 0.0, 0.9]), np.array([0.1, 0.0, 1.0])
    return SimpleNamespace(elbow=elbow, base=base, gripper_position=position, gripper_rotation=downward_rotation(0.0))


def corrections(unfold: Unfold, steps: int) -> list[bool]:
    return [not np.array_equal(unfold.correct(ACTION), ACTION) for _ in range(steps)]


def test_a_bent_arm_and_a_short_stretch_are_left_alone() -> None:
    arm = scene(-2.0)
    unfold = Unfold(arm)  # type: ignore[arg-type]
    assert not any(corrections(unfold, 100))
    for elbow in (STRETCHED + 0.01, BENT):
        arm.elbow = elbow
        assert not any(corrections(unfold, PATIENCE))


def test_after_a_while_the_hand_turns_towards_the_base_until_the_elbow_is_bent() -> None:
    arm = scene(-0.07)
    unfold = Unfold(arm)  # type: ignore[arg-type]
    assert corrections(unfold, PATIENCE + 1) == [False] * PATIENCE + [True]
    turn = unfold.correct(ACTION)
    assert turn[:3].tolist() == [0.0, 0.0, 0.0]
    assert turn[3:6] == pytest.approx([0.0, MAX_TURN, 0.0])  # the tips, which are below, go towards -x
    assert turn[6] == ACTION[6]
    arm.elbow = -0.3
    assert corrections(unfold, 3) == [True] * 3
    arm.elbow = BENT - 0.1
    assert corrections(unfold, 3) == [False] * 3


def test_it_does_not_turn_for_ever() -> None:
    arm = scene(-0.07)
    unfold = Unfold(arm)  # type: ignore[arg-type]
    corrections(unfold, PATIENCE + 1)
    arm.elbow = -0.3
    assert corrections(unfold, MOST_STEPS) == [True] * (MOST_STEPS - 1) + [False]
