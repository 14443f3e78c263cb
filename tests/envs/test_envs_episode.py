"""The loop that plays an episode: stages in order, each with its limit, over at the first that is missed."""

from itertools import islice

import numpy as np
import pytest

from chain_fakes import CHAIN, ChainEnv
from rdvla.envs import InitState, Seed
from rdvla.envs.episode import play, turns
from rdvla.envs.toy import ToyEnv

NOTHING = np.zeros(1, np.float32)


def steps(start):
    env = ChainEnv()
    played = []
    for turn in play(env, start):
        turn.execute(NOTHING)
        played.append((turn.stage_index, turn.first, turn.solved))
    return env, turn, played


def test_stages_follow_each_other_until_all_are_solved():
    env, last, played = steps(InitState(2))  # every stage takes two steps
    assert len(played) == 2 * len(CHAIN)
    assert [number for number, first, _ in played if first] == [0, 1, 2]
    assert (last.stages_solved, last.step) == (len(env.stages), 5)


def test_the_first_stage_that_is_missed_ends_the_episode():
    _, last, played = steps(InitState(4))  # the second stage allows three steps
    assert [number for number, *_ in played] == [0] * 4 + [1] * 3
    assert last.solved is False
    assert last.stages_solved == 1


def test_the_environment_is_reset_at_once_and_turns_go_on_from_where_it_is():
    env = ChainEnv()
    play(env, Seed(5))
    assert env.resets == [Seed(5)]
    for turn in islice(turns(env), 2):
        turn.execute(NOTHING)
    assert env.steps == 2
    assert env.resets == [Seed(5)]


def test_turns_begin_with_the_present_stage():
    env = ChainEnv()
    env.reset(InitState(2))
    for _ in range(3):  # the first stage and half of the second
        env.step(NOTHING)
    played = []
    for turn in turns(env):
        turn.execute(NOTHING)
        played.append((turn.stage, turn.stage_index, turn.first))
    assert played == [(CHAIN[1], 1, True), (CHAIN[2], 2, True), (CHAIN[2], 2, False)]
    assert turn.stages_solved == len(CHAIN)


def test_recorded_actions_are_played_to_their_end():
    env = ChainEnv()
    env.reset(InitState(2))
    solved = [turn.execute(NOTHING) for turn in turns(env, exactly=6)]
    assert solved == [False, True, False, True, False, True]
    assert env.stage_index == 3


def test_a_turn_is_executed_exactly_once():
    env = ToyEnv(0)
    with pytest.raises(AssertionError, match="must be executed"):
        list(play(env, InitState(0)))
    turn = next(play(env, InitState(0)))
    turn.execute(np.zeros(7, np.float32))
    with pytest.raises(AssertionError, match="executed once"):
        turn.execute(np.zeros(7, np.float32))
