"""Goals made of several predicates: which comes next, and what has to be done before it."""

from collections.abc import Sequence

from rdvla.experts.libero.clearing import is_covered
from rdvla.experts.libero.pushing_in import stands_before
from rdvla.experts.libero.scene import Goal, LiberoScene

PASSABLE = 0.7  # of the way from closed to open: from here on things go in and out


def next_goal(scene: LiberoScene, goals: Sequence[Goal]) -> Goal:
    """Return what to work on now: an unmet predicate that waits for no other, or what it needs first.

    With every predicate met it is the last one.
    """
    unmet = [goal for goal in goals if not scene.holds(goal)]
    if not unmet:
        return goals[-1]
    free = [goal for goal in unmet if not any(_waits(scene, goal, other) for other in unmet if other != goal)]
    goal = (free or unmet)[0]
    if goal.predicate == "open":
        return _opening(scene, goal.arguments[0], unmet)
    if goal.predicate != "in":
        return goal
    door = scene.door(goal.arguments[1])
    if door is not None and not _is_passable(scene, door):
        return _opening(scene, door, unmet)
    return Goal("push", goal.arguments) if stands_before(scene, goal) else goal


def _opening(scene: LiberoScene, door: str, unmet: Sequence[Goal]) -> Goal:
    """Return what to do to open `door`: before that, what goes inside and could not be taken afterwards is cleared."""
    inside = [goal for goal in unmet if goal.predicate == "in" and scene.door(goal.arguments[1]) == door]
    if not _is_passable(scene, door):
        for goal in inside:
            if is_covered(scene, goal.arguments[0], door):
                return Goal("clear", (goal.arguments[0], door))
    return Goal("open", (door,))


def _waits(scene: LiberoScene, goal: Goal, other: Goal) -> bool:
    """Say whether `other` must be reached before `goal`."""
    if goal.predicate == "open":
        return other.predicate == "close"  # an open drawer hangs over those below
    if other.predicate not in ("in", "on"):
        return False
    if goal.predicate == "close":
        return scene.door(other.arguments[1]) == goal.arguments[0]
    return goal.arguments[1:] == other.arguments[:1]  # what something is put on is brought first


def _is_passable(scene: LiberoScene, door: str) -> bool:
    joint = scene.joint(Goal("open", (door,)))
    return joint.value / joint.goal > PASSABLE
