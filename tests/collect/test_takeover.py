"""Demonstrations from where a policy gets to, in the toy."""

from dataclasses import replace

import numpy as np

from rdvla.collect.demonstrators import make_demonstrator, make_takeover
from rdvla.collect.recording import Attempt, play
from rdvla.envs import Seed
from rdvla.envs.toy import ToyEnv
from rdvla.experts.toy import ToyExpert
from rdvla.policy import PLAIN, Ask, Policy, PolicyMetadata
from rdvla.types import ActionChunk, Observation

ATTEMPT = Attempt("toy", 4, 2, 0)


class RisingPolicy(Policy):
    """Moves the hand up, whatever it sees."""

    metadata = PolicyMetadata("rising", ("primary",), 1, 1, 8, {})

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        return ActionChunk(np.tile(np.float32([0, 0, 0.1, 0, 0, 0, -1]), (8, 1)), 1, (), None, {})

    def reset(self) -> None:
        pass


class CheatingPolicy(RisingPolicy):
    """Reads the environment and solves it."""

    def __init__(self, env: ToyEnv) -> None:
        self.env = env
        self.expert = ToyExpert()

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        return ActionChunk(self.expert.act(self.env)[None], 1, (), None, {})


def test_it_begins_where_the_policy_got_to() -> None:
    env = ToyEnv(4)
    starts = set()
    for number in range(6):
        attempt = replace(ATTEMPT, number=number)
        played = play(env, make_takeover(env.task, make_policy=RisingPolicy, max_policy_steps=9), attempt, 4)
        recorded = played.demonstration
        assert recorded is not None
        placement, noise = attempt.seeds()
        replayed = ToyEnv(4)
        replayed.reset(Seed(placement))
        steps = 0
        while not np.array_equal(replayed.state(), recorded.states[0]):
            assert steps < 9
            replayed.step(RisingPolicy().infer(replayed.observe()).actions[0])
            steps += 1
        starts.add(steps)
        expert = make_demonstrator(env.task)
        expert.reset(replayed, seed=noise)
        np.testing.assert_array_equal(recorded.actions[0], expert.act(replayed).clean)
    assert len(starts) > 2


def test_an_attempt_gives_the_same_demonstration_again() -> None:
    env = ToyEnv(4)
    demonstrator = make_takeover(env.task, make_policy=RisingPolicy, max_policy_steps=9)
    first, _, again = [play(env, demonstrator, replace(ATTEMPT, number=n), 4).demonstration for n in (0, 1, 0)]
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.states, again.states)
    np.testing.assert_array_equal(first.actions, again.actions)


def test_what_the_policy_solves_is_not_demonstrated() -> None:
    env = ToyEnv(4)
    demonstrator = make_takeover(env.task, make_policy=lambda: CheatingPolicy(env), max_policy_steps=10_000)
    played = play(env, demonstrator, ATTEMPT, 4)
    assert played.demonstration is None
    assert played.num_steps == 0
