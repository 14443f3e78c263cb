"""The expert for LIBERO: reads the goal from the task's BDDL predicates and has one skill for each kind."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.base import TaskSpec
from rdvla.errors import ConfigError
from rdvla.experts.base import NoPlanError, Skill
from rdvla.experts.libero.articulated import MoveJoint
from rdvla.experts.libero.clearing import Clear
from rdvla.experts.libero.control import OPEN
from rdvla.experts.libero.goals import next_goal
from rdvla.experts.libero.inserting import Insert
from rdvla.experts.libero.pick_and_place import PickAndPlace
from rdvla.experts.libero.pressing import PressShut
from rdvla.experts.libero.push import Slide
from rdvla.experts.libero.pushing_in import PushIn
from rdvla.experts.libero.scene import Goal, LiberoScene
from rdvla.experts.libero.unfolding import Unfold

logger = logging.getLogger(__name__)

SKILLS: Mapping[str, Callable[[LiberoScene, Goal], Skill]] = {
    "clear": Clear,
    "push": PushIn,
    "in": PickAndPlace,
    "on": PickAndPlace,
    "open": MoveJoint,
    "close": PressShut,
    "turnon": MoveJoint,
    "turnoff": MoveJoint,
}
"""Predicate -> the skill that makes it true. `clear` and `push` are none of LIBERO's: the one makes room before
something opens, the other moves what was let go too far out."""

SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90", "libero_object_varied")
"""The suites with experts. Of libero_90 not every task is solved; docs/libero.md has the rates."""


def make_expert(task: TaskSpec) -> "LiberoExpert":
    """Return the expert for a task.

    Raises:
        ConfigError: there is none for its suite.
    """
    if task.suite not in SUITES:
        raise ConfigError(f"no expert for the tasks of {task.suite}; there are experts for {', '.join(SUITES)}.")
    return LiberoExpert()


class LiberoExpert:
    """Makes the goal's predicates true, one after the other.

    Attributes:
        skill: what it is at; None while it sees no way on and stands still.
    """

    def __init__(self) -> None:
        self.skill: Skill | None = None

    @property
    def precise(self) -> bool:
        """Whether the next action needs accuracy."""
        return self.skill is not None and self.skill.precise

    def reset(self, env: Any) -> None:
        """Read the scene of `env` (a `LiberoEnv`) and plan for the first predicate.

        Raises:
            ConfigError: the goal has a predicate that no skill knows.
        """
        self._scene = LiberoScene(env.unwrapped)
        self._unfold = Unfold(self._scene)
        self._skills = {goal: _skill(self._scene, goal) for goal in self._scene.goals}
        self._next()

    def act(self, env: Any) -> NDArray[np.float32]:
        """Return the next action `[7]`: OSC_POSE displacements and the gripper (-1 open, +1 close).

        Without a way on it stands still and looks again at the next step, so at worst the episode is not solved.
        """
        if self.skill is None:
            self._next()
        while self.skill is not None:
            try:
                action = self.skill.act()
            except NoPlanError as error:
                self._pause(error)
                break
            if action is not None:
                return self._unfold.correct(action)
            self._next()
        return np.array([0, 0, 0, 0, 0, 0, OPEN], dtype=np.float32)

    def _next(self) -> None:
        """Start the skill for the first unmet predicate (the last one if all are met)."""
        goal = next_goal(self._scene, self._scene.goals)
        if goal not in self._skills:
            self._skills[goal] = _skill(self._scene, goal)
        self.skill = self._skills[goal]
        try:
            self.skill.start()
        except NoPlanError as error:
            self._pause(error)

    def _pause(self, error: NoPlanError) -> None:
        logger.info("no way on for now: %s", error)
        self.skill = None


def _skill(scene: LiberoScene, goal: Goal) -> Skill:
    if goal.predicate not in SKILLS:
        raise ConfigError(f"no skill for a goal of kind '{goal.predicate}'; there are skills for {', '.join(SKILLS)}.")
    if goal.predicate == "on" and Slide.suits(scene, goal):
        return Slide(scene, goal)
    if goal.predicate == "in" and Insert.suits(scene, goal):
        return Insert(scene, goal)
    return SKILLS[goal.predicate](scene, goal)
