"""A scripted expert as a policy, so that whatever measures policies measures it."""

from typing import Any

import numpy as np

from rdvla.envs.base import Env
from rdvla.experts import make_expert
from rdvla.policy import PLAIN, Ask, Policy, PolicyMetadata
from rdvla.types import ActionChunk, Observation


class ExpertPolicy(Policy):
    """One action per decision, from privileged state, without a picture."""

    def __init__(self) -> None:
        self._env: Any = None
        self._expert: Any = None

    @property
    def metadata(self) -> PolicyMetadata:
        """What it needs: no camera. Sizes are those of the robot it is bound to, 0 before."""
        robot = None if self._env is None else self._env.embodiment
        state_dim, action_dim = (robot.state_dim, robot.action_dim) if robot else (0, 0)
        return PolicyMetadata("scripted expert", (), state_dim, action_dim, chunk_size=1, extra={})

    def bind(self, env: Env) -> None:
        """Serve `env`, with an expert for its task.

        Raises:
            ConfigError: there is no expert for the task.
        """
        self._env, self._expert = env, make_expert(env.task)

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        """Return the expert's next action for the environment it is bound to; the arguments do not matter."""
        action = np.asarray(self._expert.act(self._env), dtype=np.float32)
        return ActionChunk(action[None])

    def reset(self) -> None:
        """Have the expert read the scene of an episode, or a stage, that has just begun."""
        self._expert.reset(self._env)
