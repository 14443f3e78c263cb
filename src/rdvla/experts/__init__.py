"""Scripted experts: they solve tasks from the simulator's state and make the demonstrations."""

from collections.abc import Callable, Mapping

from rdvla.envs.base import TaskSpec
from rdvla.errors import ConfigError
from rdvla.experts.base import Expert
from rdvla.experts.libero import PickAndPlace
from rdvla.experts.noise import NoisyExpert
from rdvla.experts.toy import ToyExpert

EXPERTS: Mapping[str, Callable[[], Expert]] = {
    "libero_object": PickAndPlace,
    "libero_spatial": PickAndPlace,
    "toy": ToyExpert,
}
"""Suite -> the expert that solves its tasks."""


def make_expert(task: TaskSpec) -> Expert:
    """Return the expert for a task.

    Raises:
        ConfigError: no expert knows tasks of that suite.
    """
    if task.suite not in EXPERTS:
        raise ConfigError(f"no expert for '{task.name}' of {task.suite}; there are experts for {', '.join(EXPERTS)}.")
    return EXPERTS[task.suite]()


def make_demonstrator(task: TaskSpec) -> NoisyExpert:
    """Return the expert for a task with the noise that demonstrations are made with."""
    return NoisyExpert(make_expert(task))
