"""Demonstrations never begin where an evaluation on the bundled initial states does."""

import collect_fakes as fakes
import numpy as np
import pytest

from rdvla.collect.recording import Attempt, play
from rdvla.envs import InitState, Seed
from rdvla.envs.toy import ToyEnv

STATES, ATTEMPTS = 50, 20


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
def test_no_bundled_initial_state_is_in_the_data():
    pytest.importorskip("libero", reason="the LIBERO simulator is not installed")
    from rdvla.envs.libero.env import LiberoEnv

    def placement(start):
        env.reset(start)
        return env.sim.data._data.qpos[9:].copy()  # without the robot's joints

    with LiberoEnv("libero_10", 3, camera_size=64) as env:
        bundled = np.array([placement(InitState(index)) for index in range(STATES)])
        played = [placement(Seed(Attempt("libero_10", 3, n, seed=0).seeds()[0])) for n in range(ATTEMPTS)]
        again = placement(InitState(7))
    nearest = [np.abs(bundled - one).max(axis=1).min() for one in played]
    assert min(nearest) > 1e-4  # m, and parts of quaternions
    assert np.abs(bundled - again).max(axis=1).min() == 0.0
