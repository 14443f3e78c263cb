"""What an environment offers: a policy's view on demand, and the physics."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rdvla.types import Observation


@dataclass(frozen=True)
class TaskSpec:
    """Names one task of one suite.

    Attributes:
        suite: benchmark suite, e.g. `libero_object`.
        task_id: index within the suite, from 0.
        name: the benchmark's own name of the task.
        instruction: the sentence given to the policy.
        max_steps: control steps allowed per episode, settling excluded.
    """

    suite: str
    task_id: int
    name: str
    instruction: str
    max_steps: int


class Env(Protocol):
    """One task in a simulator. Rendering happens in `observe` only, so it costs nothing until somebody looks."""

    @property
    def task(self) -> TaskSpec:
        """The task being simulated."""
        ...

    def reset(self, *, init_state: int | None = None, seed: int | None = None) -> None:
        """Start an episode and let the scene settle.

        Args:
            init_state: index of a bundled initial state (the benchmark's evaluation protocol).
            seed: sample a placement with the environment's own sampler instead. Exactly one of the two is given.
        """
        ...

    def observe(self) -> Observation:
        """Render both cameras and return what a policy sees now."""
        ...

    def state(self) -> NDArray[np.float32]:
        """Return the robot's state vector `[S]` without rendering."""
        ...

    def step(self, action: NDArray[np.float32]) -> bool:
        """Execute one action `[action_dim]` in the environment's convention; return whether the task is solved."""
        ...

    def close(self) -> None:
        """Release the simulator and its GL context."""
        ...
