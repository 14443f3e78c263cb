"""CALVIN's protocols from the command line to the record: what they mean, and one chain of a released checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import checkpoint_fakes as fakes
from calvin_files import ASSETS, needs_calvin
from chain_fakes import CHAIN, TASK, ChainEnv, Pusher
from rdvla.checkpoints import save_official
from rdvla.cli import eval as command
from rdvla.cli.main import app
from rdvla.envs import InitState, find_suite
from rdvla.envs.calvin import suites
from rdvla.errors import ConfigError
from rdvla.eval.player import EpisodePlayer, EpisodeRecipe
from rdvla.eval.protocol import EvalConfig, Job, Rule, plan
from rdvla.eval.rollout import run_episode
from rdvla.eval.video import annotate
from rdvla.policies import load_policy
from rdvla.policies.sources import LoadOptions, choose_policy


@pytest.fixture
def configured(monkeypatch):
    """Return a function: what the command line evaluates."""
    found = []
    monkeypatch.setattr(command, "choose_policy", lambda *_, **__: ("pusher", "", Pusher))
    monkeypatch.setattr(command, "evaluate", lambda config, **_: found.append(config) or [])

    def configure(*arguments):
        base = ["eval", "--suite", "calvin_d", "--output", "out"]
        CliRunner().invoke(app, [*base, *arguments], catch_exceptions=False)
        return found.pop()

    return configure


def test_the_official_protocol(configured):
    config = configured("--chains", "0-99", "--protocol", "official", "--horizon", "8")
    assert config.init_states == tuple(range(100))
    assert (config.strategies, config.horizons) == (("synchronous",), ("8",))
    assert [stage_steps(job) for job in jobs(config)] == [360] * 100
    usual = configured("--chains", "0-99")  # the same protocol, unsaid
    assert usual.model_dump() == config.model_copy(update={"horizons": ("5",)}).model_dump()


def test_the_released_protocol_brings_its_way_to_execute_chunks(configured):
    config = configured("--chains", "0-999", "--protocol", "released")
    assert config.strategies == ("calvin_released",)
    planned = jobs(config)
    assert len(planned) == len({job.key for job in planned}) == 1000
    assert {(job.protocol, job.rule.strategy, stage_steps(job)) for job in planned} == {
        ("released", "calvin_released", 800)
    }
    both = configured("--protocol", "released", "--strategy", "synchronous,calvin_released", "--horizon", "8")
    assert both.strategies == ("synchronous", "calvin_released")
    assert configured("--protocol", "released", "--policy", "expert").strategies == ("synchronous",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "released", "--horizon", "8"], "strategy synchronous, not calvin_released"),
        (["--protocol", "relesed"], "Did you mean 'released'"),
        (["--chains", "990-1000"], "names 1000, but calvin_d task 0"),
        (["--suite", "toy", "--protocol", "released"], "has no protocol 'released'"),
    ],
)
def test_what_does_not_go_together(configured, arguments, message):
    with pytest.raises(ConfigError, match=message):
        configured(*arguments)


def jobs(config):
    return plan(config, {name: find_suite(name, config.protocol) for name in config.suites})


def stage_steps(job):
    return job.task.max_steps // 5


def test_the_film_of_a_chain_shows_stage_and_instruction():
    class Words:
        def __init__(self):
            self.seen = []

        def wants(self, step):
            return True

        def add(self, image, *, words, iterations, max_depth):
            self.seen.append(words)
            assert iterations == 3

    film = Words()
    run_episode(ChainEnv(), Pusher(), Job(TASK, InitState(2), Rule(None, "1"), 7), film)
    assert film.seen == ["1 of 3: do one"] * 2 + ["2 of 3: do two"] * 2 + ["3 of 3: do three"] * 3
    assert len(CHAIN) == 3


def test_a_picture_of_a_film_has_the_words_and_the_thinking_below():
    image = np.zeros((84, 84, 3), np.uint8)

    def drawn(words, iterations):
        picture = annotate(image, words=words, iterations=iterations, max_depth=8)
        assert picture.shape == (480, 384, 3)
        assert not picture[:384].any(), "nothing is written over the picture"
        words_shown, thinking = picture[384:424], picture[424:]
        return [len(np.unique(part.reshape(-1, 3), axis=0)) > 1 for part in (words_shown, thinking)]

    assert drawn("open the drawer", 4) == [True, True]
    assert drawn("open the drawer", 0) == [True, False]
    assert drawn("word " * 100, 4) == [True, True]


@needs_calvin
def test_a_released_checkpoint_plays_a_chain_by_the_released_protocol(tmp_path, monkeypatch):
    monkeypatch.setenv("RDVLA_CALVIN_DATA", str(ASSETS))
    monkeypatch.setattr(suites, "STAGE_STEPS", {"official": 4, "released": 13})
    save_official(tmp_path, calvin_checkpoint())
    suite = find_suite("calvin_d", "released")
    _, _, factory = choose_policy(tmp_path, None, LoadOptions())
    player = EpisodePlayer(EpisodeRecipe(factory, {suite.name: suite}))
    config = EvalConfig(
        policy="", suites=(suite.name,), init_states=(3,), protocol="released", strategies=(suite.strategy,)
    )
    result = player.play(plan(config, {suite.name: suite})[0])
    player.close()
    outcome = result.outcome
    assert (outcome.success, outcome.steps, outcome.num_stages, len(outcome.stages)) == (False, 13, 5, 1)
    assert len(outcome.iterations) == 6, "three decisions for every ten steps"
    assert sum(outcome.executed) == 7 * 3 + 1 + 2 + 3
    assert result.policy["extra"]["gripper"] == "open_is_positive"
    assert {"pybullet", "calvin_data", "renderer"} <= result.versions.keys()


def test_the_gripper_of_a_checkpoint_of_another_robot_is_named(tmp_path):
    save_official(tmp_path, fakes.make("released"))
    suite = find_suite("calvin_d")
    player = EpisodePlayer(EpisodeRecipe(lambda: load_policy(tmp_path), {suite.name: suite}))
    job = plan(EvalConfig(policy="", suites=(suite.name,), init_states=(0,)), {suite.name: suite})[0]
    with pytest.raises(ConfigError, match="the gripper is open_is_positive there, not open_is_negative"):
        player.play(job)


def calvin_checkpoint():
    checkpoint = fakes.make("released", gripper="open_is_positive", chunk_size=8)
    return replace(checkpoint, statistics={"calvin_abc_rlds": fakes.statistics()})
