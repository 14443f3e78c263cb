"""The one loop that plays an episode, whoever acts and whoever watches.

for turn in play(env, InitState(3)):
    turn.execute(executor.act(env.observe))

A turn is one control step. Whatever belongs to it, rendering, filming, recording, waiting, happens in the body of the
loop; leaving the loop ends the episode early.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.base import Env, Stage, Start
from rdvla.types import Observation


@dataclass
class Turn:
    """One control step, to be executed in the body of the loop.

    Attributes:
        stage: the stage it belongs to.
        stage_index: number of that stage, from 0.
        step: number of the step since the turns began, from 0.
        first: whether it is the first of its stage.
        solved: whether it solved the stage; None before it is executed.
    """

    stage: Stage
    stage_index: int
    step: int
    first: bool
    _env: Env = field(repr=False)
    solved: bool | None = None

    def execute(self, action: NDArray[np.float32]) -> bool:
        """Execute `action` `[action_dim]`, in the environment's convention; return whether the stage is solved.

        Raises:
            ConfigError: the action does not fit the environment.
            SimulatorError: the simulator broke.
        """
        assert self.solved is None, "a turn is executed once"
        self.solved = self._env.step(action)
        return self.solved

    def observe(self, *, pictures: bool) -> Observation:
        """Return what a policy sees; for one without cameras, `pictures` False, nothing is rendered."""
        return self._env.observe() if pictures else Observation({}, self._env.state(), self.stage.instruction)

    @property
    def stages_solved(self) -> int:
        """How many stages are solved so far."""
        return self.stage_index + bool(self.solved)


def play(env: Env, start: Start) -> Iterator[Turn]:
    """Reset `env` at once, and return the turns of the episode; see `turns`.

    Raises:
        ConfigError: there is no such start.
        SimulatorError: the simulator broke.
    """
    env.reset(start)
    return turns(env)


def turns(env: Env, *, exactly: int | None = None) -> Iterator[Turn]:
    """Yield the turns from where `env` is, the present stage first, until a stage is not solved within its steps.

    Args:
        env: has been reset; steps that were taken since do not count.
        exactly: play so many turns of the present stage, whatever is solved in between (for recorded actions).
    """
    step = 0
    for index in range(env.stage_index, len(env.stages)):
        stage = env.stages[index]
        for in_stage in range(stage.max_steps if exactly is None else exactly):
            turn = Turn(stage, index, step, in_stage == 0, env)
            yield turn
            assert turn.solved is not None, "every turn must be executed"
            step += 1
            if turn.solved and exactly is None:
                break
        else:
            return
