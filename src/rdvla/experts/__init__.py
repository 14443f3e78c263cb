"""Scripted experts: they solve tasks from the simulator's state."""

from importlib.metadata import EntryPoint

from rdvla.envs import find_suite
from rdvla.envs.base import TaskSpec
from rdvla.errors import ConfigError
from rdvla.experts.base import Expert


def make_expert(task: TaskSpec) -> Expert:
    """Return the expert for a task, as its suite names it.

    Raises:
        ConfigError: no expert knows the task.
    """
    where = find_suite(task.suite).expert
    if not where:
        raise ConfigError(f"no expert for the tasks of {task.suite}.")
    expert: Expert = EntryPoint(task.suite, where, "experts").load()(task)
    return expert
