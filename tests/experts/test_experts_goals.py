"""The order in which the predicates of a goal are worked off."""

from types import SimpleNamespace

import pytest

from rdvla.experts.libero import goals as goals_room
from rdvla.experts.libero.goals import next_goal
from rdvla.experts.libero.scene import Goal

PUT = Goal("in", ("bowl", "drawer"))
SHUT = Goal("close", ("drawer",))
OPEN = Goal("open", ("drawer",))
CLEAR = Goal("clear", ("bowl", "drawer"))
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


@pytest.fixture(autouse=True)
def before(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of what stands before its place; nothing does."""
    names: set[str] = set()
    monkeypatch.setattr(goals_room, "stands_before", lambda scene, goal: goal.arguments[0] in names)
    return names


def test_what_was_let_go_too_far_out_is_pushed_once_the_way_is_open(
    before: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before.add("bowl")
    assert next_goal(Kitchen(), (SHUT, PUT)) == Goal("push", PUT.arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(goals_room, "is_covered", lambda scene, name, door: False)
    assert next_goal(Kitchen(opened=0.05), (SHUT, PUT)) == OPEN  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("opened", "goals", "covered", "expected"),
    [
        (0.14, (SHUT, PUT), True, PUT),
        (0.05, (SHUT, PUT), False, OPEN),
        (0.05, (SHUT, PUT), True, CLEAR),
        (0.05, (OPEN, PUT), True, CLEAR),
        (0.14, (OPEN, PUT), True, OPEN),  # nearly open: what stands below is not met any more
        (0.05, (OPEN,), True, OPEN),
    ],
)
def test_a_drawer_that_is_not_open_enough_is_opened_first_and_room_made_before(
    opened: float, goals: tuple[Goal, ...], covered: bool, expected: Goal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdvla.experts.libero.goals.is_covered", lambda scene, name, door: covered)
    assert next_goal(Kitchen(opened=opened), goals) == expected  # type: ignore[arg-type]
