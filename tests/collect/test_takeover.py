"""Demonstrations from where a policy gets to, in the toy and in chains."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from collect_fakes import Pusher, Threes, ThreesSuite

import chain_fakes
from chain_fakes import CHAIN
from rdvla.collect.demonstrators import make_demonstrator, make_takeover
from rdvla.collect.recording import Attempt, Part, play
from rdvla.collect.takeover import Takeover
from rdvla.envs import Seed
from rdvla.envs.toy import ToyEnv, ToySuite
from rdvla.errors import ConfigError
from rdvla.experts.toy import ToyExpert
from rdvla.policy import PLAIN, Ask, Policy, PolicyMetadata
from rdvla.types import ActionChunk, Observation

ATTEMPT = Attempt("toy", 4, 2, 0)


class RisingPolicy(Policy):
    """Moves the hand up, whatever it sees."""

    metadata = PolicyMetadata("rising", ("primary",), 8, 7, 8, {})

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


def takeover(make_policy: Callable[[], Policy], max_policy_steps: int) -> Takeover:
    demonstrator = make_takeover(ToyEnv(4).task, make_policy=make_policy, max_policy_steps=max_policy_steps)
    demonstrator.prepare(ToySuite("toy"))
    return demonstrator


def test_it_begins_where_the_policy_got_to() -> None:
    env = ToyEnv(4)
    starts = set()
    for number in range(6):
        attempt = replace(ATTEMPT, number=number)
        played = play(env, takeover(RisingPolicy, 9), attempt, 4)
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
    demonstrator = takeover(RisingPolicy, 9)
    first, _, again = [play(env, demonstrator, replace(ATTEMPT, number=n), 4).demonstration for n in (0, 1, 0)]
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.states, again.states)
    np.testing.assert_array_equal(first.actions, again.actions)


def test_what_the_policy_solves_is_not_demonstrated() -> None:
    env = ToyEnv(4)
    played = play(env, takeover(lambda: CheatingPolicy(env), 10_000), ATTEMPT, 4)
    assert played.demonstration is None
    assert played.num_steps == 0


class Asked(chain_fakes.Pusher):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        self.sentences.append(observation.instruction)
        return super().infer(observation, ask)


def test_of_a_chain_the_stages_that_the_expert_solves_are_demonstrated() -> None:
    policy = Asked()
    demonstrator = Takeover(Pusher(), lambda: policy, 9)
    demonstrator.prepare(ThreesSuite("chain"))
    begun = []
    for attempt in (Attempt("chain", 0, number, 0) for number in [*range(60), *range(60)]):
        policy.sentences.clear()
        recorded = play(Threes(), demonstrator, attempt, 1).demonstration
        begins = 9 if recorded is None else int(recorded.states[0, 0])
        begun.append(begins)
        assert policy.sentences == ["do one", "do two", "do three"][: -(-begins // 3)]
        if recorded is not None:
            stage, inside = divmod(begins, 3)
            lengths = [3 - inside, 3, 3]
            assert recorded.parts == tuple(
                Part(each.name, each.instruction, length) for each, length in zip(CHAIN[stage:], lengths, strict=False)
            )
            np.testing.assert_array_equal(recorded.states[:, 0], range(begins, 9))
            np.testing.assert_array_equal(recorded.actions[:, 0], range(begins, 9))
    assert set(begun) == set(range(10))  # 9: the policy solves everything
    assert begun[:60] == begun[60:]


class OneEyed(RisingPolicy):
    metadata = PolicyMetadata("one-eyed", ("left",), 8, 7, 8, {})


def test_a_policy_that_does_not_fit_is_refused_before_an_environment_starts() -> None:
    with pytest.raises(ConfigError, match="'one-eyed' does not fit suite 'toy': there is no camera 'left'"):
        takeover(OneEyed, 9)
