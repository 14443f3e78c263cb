"""Who demonstrates a task: its expert under noise, from the start or from where a policy got to."""

from collections.abc import Callable

from rdvla.collect.noise import NoisyExpert
from rdvla.collect.takeover import Takeover
from rdvla.envs.base import TaskSpec
from rdvla.experts import make_expert
from rdvla.policy import Policy


def make_demonstrator(task: TaskSpec) -> NoisyExpert:
    """Return the expert for a task with the noise that demonstrations are made with."""
    return NoisyExpert(make_expert(task))


def make_takeover(task: TaskSpec, *, make_policy: Callable[[], Policy], max_policy_steps: int) -> Takeover:
    """Return the same expert, who takes over from a policy after at most `max_policy_steps` control steps."""
    return Takeover(make_demonstrator(task), make_policy, max_policy_steps)
