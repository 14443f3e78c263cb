"""The expert of the toy tabletop: over the square, down, and up again if it is to be lifted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.base import TaskSpec

_STEP = 0.1  # the hand's way per unit of action
_ALIGNED = 0.05
_TRAVEL_HEIGHT = 0.6


class ToyExpert:
    """Solves every toy task; each action follows from the state alone."""

    precise = False

    def reset(self, env: Any) -> None:
        """Plan nothing."""

    def act(self, env: Any) -> NDArray[np.float32]:
        """Return the next action `[7]`: move to the goal, close (+1) at the square if it is to be lifted."""
        scene = env.privileged()
        goal = scene.target.copy()
        at_square = np.abs(scene.hand - goal).max() < _ALIGNED
        if scene.holding:
            goal = scene.hand + np.array([0, 0, 1])
        elif np.abs(scene.hand[:2] - goal[:2]).max() > _ALIGNED:
            goal[2] = _TRAVEL_HEIGHT
        close = scene.must_lift and (at_square or scene.holding)
        move = np.clip((goal - scene.hand) / _STEP, -1, 1)
        return np.array([*move, 0, 0, 0, 1 if close else -1], dtype=np.float32)


def make_expert(task: TaskSpec) -> ToyExpert:
    """Return the expert; it knows every task."""
    return ToyExpert()
