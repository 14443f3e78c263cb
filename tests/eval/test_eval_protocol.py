import pytest
from eval_fakes import suites

from rdvla.cli.parsing import asked_by, choose_starts, parse_depths, parse_indices, parse_names
from rdvla.envs import InitState, Seed
from rdvla.errors import ConfigError
from rdvla.eval.protocol import EvalConfig, episode_seed, plan
from rdvla.stops import StopRule


def config(**changes):
    values = {"policy": "p", "suites": ("line",), "init_states": (0, 1), "stops": parse_depths("1,4")}
    return EvalConfig.build(values | changes)


def test_ranges_and_lists():
    assert parse_indices("3,9", field="task-ids") == (3, 9)
    assert parse_indices("0-2,10-11", field="task-ids") == (0, 1, 2, 10, 11)


@pytest.mark.parametrize("text", ["", "a", "3,", "9-3", "-1", "1,1", "1-3,2", "1.5", "0-99999999999"])
def test_wrong_indices_name_the_field(text):
    with pytest.raises(ConfigError, match="task-ids"):
        parse_indices(text, field="task-ids")


def test_depths():
    assert parse_depths("1,12") == (StopRule.fixed(1), StopRule.fixed(12))
    with pytest.raises(ConfigError, match="at least once"):
        parse_depths("0,1")


def test_names():
    assert parse_names("a, b", field="suite") == ("a", "b")
    with pytest.raises(ConfigError, match="suite"):
        parse_names("a,,b", field="suite")


def test_starts():
    assert choose_starts(None, None, None) == {"init_states": tuple(range(10))}
    assert choose_starts(3, None, None) == {"init_states": (0, 1, 2)}
    assert choose_starts(None, "10-19", None) == {"init_states": tuple(range(10, 20))}
    assert choose_starts(2, "10-19", None) == {"init_states": (10, 11)}
    assert choose_starts(None, None, "5000-5001") == {"seeds": (5000, 5001)}
    wrong = [(0, None, None), (11, "10-19", None), (None, "19-10", None), (3, None, "1,2"), (None, "0", "0")]
    for episodes, states, seeds in wrong:
        with pytest.raises(ConfigError):
            choose_starts(episodes, states, seeds)


def test_only_what_was_given_is_named():
    assert asked_by(12, None, 11) == "--episodes is 12"
    assert asked_by(None, "8-50", 50) == "--init-states (--chains) names 50"
    assert "without --init-states" in asked_by(None, None, 9)


def test_plan_crosses_tasks_states_and_rules():
    jobs = plan(config(task_ids=(2, 0), horizons=("5", "linear_decay"), videos=1), suites())
    assert len({job.key for job in jobs}) == len(jobs) == 2 * 2 * 2 * 2
    assert [job.task.task_id for job in jobs] == [2] * 8 + [0] * 8
    assert [job.video for job in jobs[:8]] == [True] * 4 + [False] * 4
    assert {job.seed for job in jobs if job.task.task_id == 2 and job.start == InitState(1)} == {
        episode_seed(7, "line", 2, InitState(1))
    }


def test_seeds_differ_by_everything_that_should_matter():
    starts = [InitState(0), InitState(1), Seed(0), Seed(1)]
    seeds = [episode_seed(s, suite, t, i) for s in (7, 8) for suite in ("a", "b") for t in (0, 1) for i in starts]
    assert len(set(seeds)) == 32


def test_the_seed_of_an_episode_from_a_bundled_state_is_the_one_it_always_had():
    assert episode_seed(7, "libero_object", 3, InitState(10)) == 8164348308551624645


def test_episodes_start_from_states_or_from_seeds():
    jobs = plan(config(init_states=(), seeds=(5000, 5001), task_ids=(0,)), suites())
    assert [job.start for job in jobs] == [Seed(5000)] * 2 + [Seed(5001)] * 2
    for changes in ({"seeds": (1,)}, {"init_states": ()}):
        with pytest.raises(ConfigError, match="either from init_states or from seeds"):
            config(**changes)


def test_labels_tell_rules_apart():
    rules = [
        StopRule("action_l2", 1e-3, max_depth=32),
        StopRule("action_l2", 1e-3, min_depth=2, max_depth=32),
        StopRule("action_l2", 1e-3, max_depth=32, check_every=2),
        StopRule("action_l2", 1e-3, max_depth=32, defer=0.1),
        StopRule.fixed(32),
        None,
    ]
    labels = [rule.label for rule in config(stops=tuple(rules)).rules]
    assert len(set(labels)) == 6
    assert labels[1] == "action_l2(0.001, max 32, min 2)"
    assert labels[5] == "default"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": ("lines",)}, "unknown suite 'lines'.* 'line'"),
        ({"task_ids": (1, 1)}, "task_ids repeats a value: 1, 1"),
        ({"task_ids": (7,)}, "has no task 7: its task ids are 0-3"),
        ({"suites": ()}, "suites"),
        ({"init_states": (1, 1)}, "init_states repeats"),
        ({"horizons": ("linear",)}, "linear_decay"),
        ({"seed": -1}, "seed"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(config(**changes), suites())
