from dataclasses import replace

import numpy as np
import pytest

from rdvla.envs import InitState, Seed, list_tasks, make_env
from rdvla.envs.toy import MAX_STEPS, ToyEnv, ToyPrivileged
from rdvla.errors import ConfigError, SimulatorError


def scripted_action(scene: ToyPrivileged) -> np.ndarray:
    """Go above the target, down, close, up."""
    goal = scene.target.copy()
    over = np.abs(scene.target[:2] - scene.hand[:2]).max() < 0.03
    goal[2] = 0.6 if scene.holding else 0.05 if over else 0.4
    close = scene.must_lift and (scene.holding or (over and scene.hand[2] < 0.1))
    return np.concatenate([np.clip((goal - scene.hand) / 0.1, -1, 1), np.zeros(3), [1.0 if close else -1.0]])


@pytest.mark.parametrize("task_id", range(6))
@pytest.mark.parametrize("start", [InitState(0), InitState(49), Seed(0), Seed(12345)])
def test_a_scripted_controller_solves_every_task(task_id, start):
    env = ToyEnv(task_id)
    env.reset(start)
    solved = [env.step(scripted_action(env.privileged())) for _ in range(40)]
    assert any(solved)
    assert env.num_steps == 40 < MAX_STEPS
    assert env.num_renders == 0


def test_doing_nothing_solves_no_task():
    for task_id in range(6):
        env = ToyEnv(task_id)
        env.reset(Seed(1))
        assert not any(env.step(np.zeros(7)) for _ in range(MAX_STEPS))


def test_reaching_the_wrong_square_does_not_count():
    env = ToyEnv(0)
    env.reset(Seed(3))
    blue = env._squares["blue"]
    at_blue = [env.step(scripted_action(replace(env.privileged(), target=blue))) for _ in range(40)]
    assert np.abs(env.privileged().hand[:2] - blue[:2]).max() < 0.03
    assert not any(at_blue)


def test_the_same_start_gives_the_same_episode_whatever_came_before():
    env = ToyEnv(3)
    env.reset(Seed(7))
    first = env.observe()
    env.step(np.full(7, 0.5))
    env.reset(InitState(2))
    env.reset(Seed(7))
    again = env.observe()
    assert all(np.array_equal(first.images[camera], again.images[camera]) for camera in first.images)
    assert np.array_equal(first.state, again.state)


def test_bundled_and_sampled_placements_are_distinct():
    env = ToyEnv(0)
    placements = set()
    for start in [*map(InitState, range(50)), *map(Seed, range(50))]:
        env.reset(start)
        placements.add(tuple(env.privileged().target))
    assert len(placements) == 100


def test_observation_layout_and_counting():
    env = ToyEnv(0, camera_size=32)
    env.reset(InitState(0))
    observation = env.observe()
    assert {camera: image.shape for camera, image in observation.images.items()} == {
        "primary": (32, 32, 3),
        "wrist": (32, 32, 3),
    }
    assert observation.state.dtype == np.float32
    assert observation.state.shape == (8,)
    assert observation.instruction == "reach the red square"
    assert env.num_renders == 2


def test_the_target_is_visible_in_its_colour():
    env = ToyEnv(0)
    env.reset(InitState(0))
    target = env.privileged().target
    pixel = ((target[:2] + 1) / 2 * 64).astype(int)
    assert tuple(env.frame()[pixel[0], pixel[1]]) == (200, 40, 40)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda env: env.reset(InitState(50)), "init_state = 50"),
        (lambda env: env.reset(InitState(-1)), "init_state = -1"),
        (lambda env: env.reset(Seed(-1)), "seed = -1"),
        (lambda env: env.step(np.zeros(6)), r"shape \[7\]"),
        (lambda env: env.step(np.full(7, np.nan)), "non-finite"),
        (lambda env: env.frame("side"), "unknown camera 'side'"),
    ],
)
def test_misuse_is_a_clear_error(call, named):
    env = ToyEnv(0)
    env.reset(Seed(0))
    with pytest.raises(ConfigError, match=named):
        call(env)


def test_nothing_works_before_reset_or_after_close():
    env = ToyEnv(0)
    for call in (env.observe, env.state, env.privileged, lambda: env.step(np.zeros(7))):
        with pytest.raises(SimulatorError, match="call reset first"):
            call()
    env.reset(Seed(0))
    env.close()
    with pytest.raises(SimulatorError, match="call reset first"):
        env.state()


def test_make_env_knows_the_toy():
    assert [task.instruction for task in list_tasks("toy")][3] == "pick up the red square"
    env = make_env("toy", 2, camera_size=16)
    env.reset(Seed(0))
    assert env.task == list_tasks("toy")[2]
    assert env.observe().images["primary"].shape == (16, 16, 3)
    with pytest.raises(ConfigError, match=r"tasks 0\.\.5"):
        make_env("toy", 6)
    with pytest.raises(ConfigError, match="camera_size = 0"):
        make_env("toy", 0, camera_size=0)
