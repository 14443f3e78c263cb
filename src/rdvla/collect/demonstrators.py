"""Who demonstrates a task: its expert under noise, from the start or from where a policy got to."""

from collections.abc import Callable

from rdvla.collect.noise import NoisyExpert
from rdvla.collect.takeover import Takeover
from rdvla.envs.base import Env, TaskSpec
from rdvla.experts import make_expert
from rdvla.experts.policy import ExpertPolicy
from rdvla.policy import PLAIN, Ask, Policy
from rdvla.types import ActionChunk, Observation


def make_demonstrator(task: TaskSpec) -> NoisyExpert:
    """Return the expert for a task with the noise that demonstrations are made with."""
    return NoisyExpert(make_expert(task))


def make_takeover(task: TaskSpec, *, make_policy: Callable[[], Policy], max_policy_steps: int) -> Takeover:
    """Return the same expert, who takes over from a policy after at most `max_policy_steps` control steps."""
    return Takeover(make_demonstrator(task), make_policy, max_policy_steps)


class DisturbedExpert(ExpertPolicy):
    """The demonstrator as a policy, so that an evaluation measures it. An episode's first seed draws the noise."""

    _begun = False

    def bind(self, env: Env) -> None:
        """Serve `env`, with a demonstrator for its task.

        Raises:
            ConfigError: there is no expert for the task.
        """
        self._env, self._expert = env, make_demonstrator(env.task)

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        """Return what the demonstrator executes next."""
        if not self._begun:
            self._expert.reset(self._env, seed=ask.seed)
            self._begun = True
        return ActionChunk(self._expert.act(self._env).executed[None])

    def reset(self) -> None:
        """Have the demonstrator start at the next decision, if an episode begins; it goes on in a later stage."""
        self._begun = self._env.stage_index > 0
