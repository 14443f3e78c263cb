"""What an expert is: a scripted demonstrator that reads the simulator's state."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class NoPlanError(Exception):
    """A skill sees no way to its goal. Experts catch it: it is no error of the simulator or of the user."""


class Skill(Protocol):
    """Works towards one predicate of a goal; an expert is made of several."""

    @property
    def precise(self) -> bool:
        """Whether the next action needs accuracy."""
        ...

    def start(self) -> None:
        """Plan from the present state; called again for every further attempt.

        Raises:
            NoPlanError: there is no way.
        """
        ...

    def act(self) -> NDArray[np.float32] | None:
        """Return the next action `[7]`, or None when the skill is through, successful or not.

        Raises:
            NoPlanError: there is no way any more.
        """
        ...


class Expert(Protocol):
    """Solves one task from privileged state. It acts on the environment it is given and never renders."""

    @property
    def precise(self) -> bool:
        """Whether the next action needs accuracy (descending, closing): noise is reduced then."""
        ...

    def reset(self, env: Any) -> None:
        """Read the scene and the goal of `env`, which has just been reset, and plan anew."""
        ...

    def act(self, env: Any) -> NDArray[np.float32]:
        """Return the next action `[action_dim]` in the environment's convention, each entry in [-1, 1]."""
        ...
