"""The expert for CALVIN's 34 tasks: one skill for each kind, from whatever state a chain is in."""

from rdvla.envs.base import TaskSpec
from rdvla.experts.calvin.expert import CalvinExpert


def make_expert(task: TaskSpec) -> CalvinExpert:
    """Return the expert, who asks the environment for the present task."""
    return CalvinExpert()
