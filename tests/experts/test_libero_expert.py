"""The pick-and-place expert in the simulator, with the demonstrations' noise."""

import pytest

from rdvla.envs.base import TaskSpec
from rdvla.errors import ConfigError
from rdvla.experts import make_demonstrator, make_expert

pytest.importorskip("libero", reason="the LIBERO simulator is not installed")


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(("suite", "task_id"), [("libero_object", 6), ("libero_spatial", 5)])
def test_it_solves_a_task_from_a_random_placement(suite: str, task_id: int) -> None:
    from rdvla.envs.libero import LiberoEnv

    with LiberoEnv(suite, task_id, camera_size=64) as env:
        env.reset(seed=7)
        expert = make_demonstrator(env.task)
        expert.reset(env, seed=7)
        steps = next((n for n in range(1, env.task.max_steps) if env.step(expert.act(env).executed)), None)
    assert steps is not None
    assert 40 < steps < 160


def test_a_task_without_an_expert_is_named() -> None:
    task = TaskSpec("libero_10", 0, "KITCHEN_SCENE", "put both moka pots on the stove", 520)
    with pytest.raises(ConfigError, match="KITCHEN_SCENE"):
        make_expert(task)
