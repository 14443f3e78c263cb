"""The noise of demonstrations, on an expert that wants nothing."""

from typing import Any

import numpy as np
import pytest

from chain_fakes import ChainEnv
from rdvla.collect import demonstrators
from rdvla.collect.noise import NoiseConfig, NoisyExpert
from rdvla.envs import Seed
from rdvla.errors import ConfigError
from rdvla.eval.protocol import Job, Rule
from rdvla.eval.rollout import run_episode
from rdvla.policy import decision_seed


class StillExpert:
    def __init__(self, *, precise: bool = False) -> None:
        self.precise = precise

    def reset(self, env: Any) -> None:
        pass

    def act(self, env: Any) -> np.ndarray:
        return np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32)


def executed(seed: int, steps: int = 2000, *, precise: bool = False, config: NoiseConfig | None = None) -> np.ndarray:
    noisy = NoisyExpert(StillExpert(precise=precise), config)
    noisy.reset(None, seed=seed)
    return np.stack([noisy.act(None).executed for _ in range(steps)])


def test_a_seed_gives_the_same_noise() -> None:
    assert np.array_equal(executed(3, 50), executed(3, 50))
    assert not np.array_equal(executed(3, 50), executed(4, 50))


class Watched(ChainEnv):
    def reset(self, start: Any) -> None:
        super().reset(start)
        self.actions: list[np.ndarray] = []

    def step(self, action: np.ndarray) -> bool:
        self.actions.append(action)
        return super().step(action)


def test_an_evaluation_disturbs_a_chain_as_a_collection_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrators, "make_expert", lambda task: StillExpert())
    env = Watched()
    policy = demonstrators.DisturbedExpert()
    policy.bind(env)
    for start in Seed(3), Seed(2):  # steps per stage; there are three
        job = Job(env.task, start, Rule(None, "1"), run_seed=0)
        run_episode(env, policy, job)
        expected = executed(decision_seed(job.seed, 0), 3 * start.value)
        np.testing.assert_array_equal(env.actions, expected)


def test_the_label_is_clean_and_the_gripper_is_left_alone() -> None:
    noisy = NoisyExpert(StillExpert())
    noisy.reset(None, seed=0)
    step = noisy.act(None)
    assert np.array_equal(step.clean, StillExpert().act(None))
    assert not np.array_equal(step.clean[:6], step.executed[:6])
    assert step.executed[6] == step.clean[6]


def test_size_and_correlation_are_as_configured() -> None:
    noise = executed(0, 20_000, config=NoiseConfig(max_push_steps=0))
    assert noise[:, :3].std() == pytest.approx(0.25, rel=0.1)
    assert noise[:, 3:6].std() == pytest.approx(0.05, rel=0.1)
    assert np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1] == pytest.approx(0.85, abs=0.03)


def test_noise_is_halved_where_precision_counts() -> None:
    config = NoiseConfig(max_push_steps=0)
    assert executed(0, precise=True, config=config)[:, :6] == pytest.approx(
        executed(0, config=config)[:, :6] / 2, abs=1e-6
    )


def test_the_push_is_short_and_strong() -> None:
    config = NoiseConfig(sigma=0.0, rotation_sigma=0.0)
    lengths = {int((np.abs(executed(seed, 20, config=config)[:, :3]).max(1) > 0).sum()) for seed in range(30)}
    assert min(lengths) == 0
    assert max(lengths) == 6
    pushed = next(run for run in (executed(seed, 20, config=config) for seed in range(30)) if run[0, :3].any())
    assert np.linalg.norm(pushed[0, :3]) == pytest.approx(0.8, abs=1e-6)


def test_actions_stay_in_range() -> None:
    assert np.abs(executed(0, config=NoiseConfig(sigma=3.0))).max() <= 1.0


@pytest.mark.parametrize("wrong", [{"sigma": -0.1}, {"correlation": 1.0}, {"max_push_steps": -1}])
def test_bad_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        NoiseConfig(**wrong)  # type: ignore[arg-type]
