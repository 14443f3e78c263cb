import pytest

from rdvla.collect.demonstrators import make_demonstrator
from rdvla.envs import Seed, list_tasks, make_env
from rdvla.errors import ConfigError
from rdvla.experts import make_expert


@pytest.mark.parametrize("task", list_tasks("toy"), ids=lambda task: task.name)
def test_every_toy_task_is_solved_in_spite_of_the_noise(task):
    env = make_env("toy", task.task_id)
    for seed in range(5):
        env.reset(Seed(seed))
        demonstrator = make_demonstrator(task)
        demonstrator.reset(env, seed=seed)
        assert any(env.step(demonstrator.act(env).executed) for _ in range(task.max_steps))


def test_a_suite_without_expert_is_named():
    task = list_tasks("toy")[0]
    with pytest.raises(ConfigError, match="libero_90"):
        make_expert(type(task)("libero_90", 0, "name", "sentence", 400))
