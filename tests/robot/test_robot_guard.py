"""The action guard on literal numbers."""

import logging

import numpy as np
import pytest

from rdvla.errors import ConfigError
from rdvla.robot.guard import ActionGuard, ActionLimits

LIMITS = ActionLimits(np.array([-1, -1]), np.array([1, 1]), np.array([0.5, np.inf]))
STOP = np.zeros(2, np.float32)


def guard(**options: object) -> ActionGuard:
    return ActionGuard(LIMITS, stop_action=STOP, **options)  # type: ignore[arg-type]


def kinds(made: ActionGuard) -> list[str]:
    return [intervention.kind for intervention in made.interventions]


def test_a_good_action_passes_untouched() -> None:
    made = guard()
    np.testing.assert_array_equal(made.check(0, np.array([0.3, -1])), np.float32([0.3, -1]))
    assert kinds(made) == []


def test_values_beyond_the_limits_are_clipped() -> None:
    made = guard()
    np.testing.assert_array_equal(made.check(0, np.array([3, -2])), [1, -1])
    assert kinds(made) == ["clipped"]


def test_changes_are_limited_per_dimension_from_the_last_command() -> None:
    made = guard()
    made.check(0, np.array([-1, -1]))
    np.testing.assert_array_equal(made.check(1, np.array([1, 1])), [-0.5, 1])
    np.testing.assert_array_equal(made.check(2, np.array([1, 1])), [0, 1])
    np.testing.assert_array_equal(made.check(3, np.array([0.25, 1])), [0.25, 1])
    assert kinds(made) == ["rate_limited", "rate_limited"]
    made.reset()
    np.testing.assert_array_equal(made.check(4, np.array([-1, -1])), [-1, -1])


@pytest.mark.parametrize("bad", [[np.nan, 0], [0, np.inf], [0, 0, 0], []])
def test_an_unusable_action_is_a_miss(bad: list[float]) -> None:
    made = guard(on_miss="hold")
    made.check(0, np.array([0.25, 1]))
    np.testing.assert_array_equal(made.check(1, np.array(bad)), [0.25, 1])
    assert kinds(made) == ["non_finite", "held"]


def test_stop_is_the_default_and_the_next_good_action_goes_on_from_there() -> None:
    made = guard()
    made.check(0, np.array([1, 1]))
    np.testing.assert_array_equal(made.miss(1, "late"), STOP)
    np.testing.assert_array_equal(made.check(2, np.array([1, 1])), [0.5, 1])
    assert kinds(made) == ["stopped", "rate_limited"]
    assert made.interventions[0].detail == "late"
    assert made.interventions[0].step == 1


def test_holding_ends_after_max_holds_and_counts_anew() -> None:
    made = guard(on_miss="hold", max_holds=2)
    np.testing.assert_array_equal(made.miss(0, "nothing yet"), STOP)
    for start in (1, 5):
        made.check(start, np.array([0.25, 1]))
        commands = [made.miss(start + k, "late")[0] for k in range(1, 4)]
        assert commands == [0.25, 0.25, 0]
    assert kinds(made) == ["stopped", *["held", "held", "stopped"] * 2]


def test_a_command_cannot_be_changed_through_its_alias() -> None:
    made = guard(on_miss="hold")
    command = made.check(0, np.array([0.25, 1]))
    command[:] = 99
    np.testing.assert_array_equal(made.miss(1, "late"), [0.25, 1])


def test_every_intervention_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = guard()
        made.check(3, np.array([2, 0]))
        made.miss(4, "no answer within 0.5 s")
    assert [record.getMessage() for record in caplog.records] == [
        "step 3: clipped: [2.0, 0.0] to [1.0, 0.0]",
        "step 4: stopped: no answer within 0.5 s",
    ]


@pytest.mark.parametrize(
    "build",
    [
        lambda: ActionLimits(np.zeros(2), np.zeros(3)),
        lambda: ActionLimits(np.ones(2), np.zeros(2)),
        lambda: ActionLimits(np.zeros(2), np.array([1, np.nan])),
        lambda: ActionLimits(np.zeros(2), np.ones(2), np.array([0.0, 1])),
        lambda: ActionLimits(["a"], [1]),
        lambda: ActionLimits([-1], None),
        lambda: ActionLimits([[1], [1, 2]], [1]),
        lambda: ActionGuard(LIMITS, stop_action=["a", "b"]),
        lambda: ActionGuard(LIMITS, stop_action=np.zeros(3)),
        lambda: ActionGuard(LIMITS, stop_action=np.array([0, 2])),
        lambda: guard(on_miss="panic"),
        lambda: guard(max_holds=-1),
    ],
)
def test_impossible_settings_are_refused(build: object) -> None:
    with pytest.raises(ConfigError):
        build()  # type: ignore[operator]


def test_a_stop_leaves_the_gripper_as_it_is() -> None:
    made = guard(keep=[-1])
    np.testing.assert_array_equal(made.miss(0, "nothing yet"), STOP)
    made.check(1, np.array([0.25, 1]))
    np.testing.assert_array_equal(made.miss(2, "late"), [0, 1])
    np.testing.assert_array_equal(made.miss(3, "late"), [0, 1])
    with pytest.raises(ConfigError, match="keep"):
        guard(keep=[2])


def test_a_hold_that_ends_does_not_leap_to_the_stop_action() -> None:
    made = guard(on_miss="hold", max_holds=1)
    made.check(0, np.array([1, 1]))
    assert [made.miss(step, "late").tolist() for step in range(1, 5)] == [[1, 1], [0.5, 0], [0, 0], [0, 0]]
    velocity = guard(on_miss="stop")
    velocity.check(0, np.array([1, 1]))
    assert velocity.miss(1, "late").tolist() == [0, 0], "to stop is to stop now"


def test_a_wanted_hold_has_no_end() -> None:
    made = guard(on_miss="hold", max_holds=2)
    made.check(0, np.array([0.25, 1]))
    assert {tuple(made.miss(step, "alarm", wanted=True)) for step in range(1, 20)} == {(0.25, 1)}
    assert [made.miss(step, "late")[0] for step in range(20, 23)] == [0.25, 0.25, 0]


@pytest.mark.parametrize("keep", [[0.5], [2], ["0"]])
def test_what_is_kept_are_dimensions(keep: list[object]) -> None:
    with pytest.raises(ConfigError, match="must be dimensions of an action of 2 values"):
        guard(keep=keep)
