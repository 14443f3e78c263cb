"""Environments: LIBERO, CALVIN, a toy without a simulator, others'. `make_env(suite, task_id)` starts one."""

from rdvla.envs.base import Env, InitState, Seed, Stage, Start, Suite, TaskSpec
from rdvla.envs.registry import find_suite, list_tasks, make_env, num_init_states

__all__ = [
    "Env",
    "InitState",
    "Seed",
    "Stage",
    "Start",
    "Suite",
    "TaskSpec",
    "find_suite",
    "list_tasks",
    "make_env",
    "num_init_states",
]
