"""Demonstrations never begin where an evaluation on the bundled initial states does."""

import collect_fakes as fakes
import numpy as np
import pytest

from rdvla.collect.recording import Attempt, play
from rdvla.envs import InitState, Seed
from rdvla.envs.toy import ToyEnv

STATES, ATTEMPTS = 50, 10
SEEDS = (0, 1, 5)
"""Of the collections that shipped policies were trained on."""


def test_every_demonstration_begins_with_a_placement_of_its_own(monkeypatch):
    env, starts = ToyEnv(0, camera_size=32), []
    reset = env.reset
    monkeypatch.setattr(env, "reset", lambda start: (starts.append(start), reset(start)))
    for number in range(ATTEMPTS):
        play(env, fakes.ToyDemonstrator(), Attempt("toy", 0, number, 0), 8)
    assert all(isinstance(start, Seed) for start in starts)
    assert len(set(starts)) == ATTEMPTS


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task"), [("libero_10", 3), ("libero_goal", 3), ("libero_object", 0), ("libero_spatial", 9)]
)
def test_no_bundled_initial_state_is_in_the_data(suite, task):
    pytest.importorskip("libero", reason="the LIBERO simulator is not installed")
    from rdvla.envs.libero.env import LiberoEnv

    def placement(start):
        env.reset(start)
        return env.sim.data._data.qpos[9:].copy()  # without the robot's joints

    with LiberoEnv(suite, task, camera_size=64) as env:
        bundled = np.array([placement(InitState(index)) for index in range(STATES)])
        attempts = [Attempt(suite, task, n, seed) for seed in SEEDS for n in range(ATTEMPTS)]
        played = [placement(Seed(attempt.seeds()[0])) for attempt in attempts]
        again = placement(InitState(7))
    nearest = [np.abs(bundled - one).max(axis=1).min() for one in played]
    assert min(nearest) > 1e-4  # m, and parts of quaternions
    assert np.abs(bundled - again).max(axis=1).min() == 0.0
