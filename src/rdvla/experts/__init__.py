"""Scripted experts: they solve tasks from the simulator's state."""

from collections.abc import Callable, Mapping

from rdvla.envs.base import TaskSpec
from rdvla.errors import ConfigError
from rdvla.experts.base import Expert
from rdvla.experts.libero import LiberoExpert
from rdvla.experts.toy import ToyExpert

EXPERTS: Mapping[str, Callable[[], Expert]] = {
    "libero_object": LiberoExpert,
    "libero_spatial": LiberoExpert,
    "libero_goal": LiberoExpert,
    "toy": ToyExpert,
}
"""Suite -> the expert that solves its tasks."""

TASK_IDS: Mapping[str, tuple[int, ...]] = {"libero_goal": (0, 1, 2, 4, 5, 6, 7, 8, 9)}
"""Suite -> the tasks that its expert solves, where these are not all."""


def make_expert(task: TaskSpec) -> Expert:
    """Return the expert for a task.

    Raises:
        ConfigError: no expert knows the task.
    """
    if task.suite not in EXPERTS:
        raise ConfigError(f"no expert for the tasks of {task.suite}; there are experts for {', '.join(EXPERTS)}.")
    known = TASK_IDS.get(task.suite)
    if known is not None and task.task_id not in known:
        raise ConfigError(
            f"no expert for task {task.task_id} of {task.suite} ({task.instruction}); choose among those that have "
            f"one: --task-ids {','.join(map(str, known))}."
        )
    return EXPERTS[task.suite]()
