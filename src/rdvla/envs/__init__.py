"""Environments: LIBERO, and a toy without a simulator. Start one with `make_env(suite, task_id)`."""

from rdvla.envs.base import Env, TaskSpec
from rdvla.envs.registry import list_tasks, make_env, num_init_states

__all__ = ["Env", "TaskSpec", "list_tasks", "make_env", "num_init_states"]
