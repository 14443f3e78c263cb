"""The order in which the predicates of a goal are worked off."""

from types import SimpleNamespace

import pytest

from rdvla.experts.goals import next_goal
from rdvla.experts.scene import Goal

PUT = Goal("in", ("bowl", "drawer"))
SHUT = Goal("close", ("drawer",))
OPEN_UPPER = Goal("open", ("upper drawer",))
STACK = Goal("on", ("cup", "bowl"))
LIGHT = Goal("turnon", ("stove",))


class Kitchen:
    """A drawer that opens to 0.15 m; `done` are the goals that hold."""

    def __init__(self, *done: Goal, opened: float = 0.15) -> None:
        self.done, self.opened = set(done), opened

    def holds(self, goal: Goal) -> bool:
        return goal in self.done

    def door(self, place: str) -> str | None:
        return place if place == "drawer" else None

    def joint(self, goal: Goal) -> SimpleNamespace:
        assert goal == Goal("open", ("drawer",))
        return SimpleNamespace(value=self.opened, goal=0.15)


@pytest.mark.parametrize(
    ("goals", "done", "expected"),
    [
        ((PUT, STACK), (), PUT),
        ((SHUT, PUT), (), PUT),  # a shut drawer takes nothing
        ((SHUT, PUT), (PUT,), SHUT),
        ((SHUT, LIGHT), (), SHUT),
        ((OPEN_UPPER, SHUT), (), SHUT),  # the upper one would hang over the lower one
        ((STACK, PUT), (), PUT),  # first what the other is put on
        ((PUT, LIGHT), (PUT, LIGHT), LIGHT),
    ],
)
def test_what_comes_next(goals: tuple[Goal, ...], done: tuple[Goal, ...], expected: Goal) -> None:
    assert next_goal(Kitchen(*done), goals) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("opened", "expected"), [(0.14, PUT), (0.05, Goal("open", ("drawer",)))])
def test_a_drawer_that_is_not_open_enough_is_opened_first(opened: float, expected: Goal) -> None:
    assert next_goal(Kitchen(opened=opened), (SHUT, PUT)) == expected  # type: ignore[arg-type]
