"""The leaf modules: horizons, stop rules, conventions, configuration files, errors."""

import copy

import numpy as np
import pytest

from rdvla import errors
from rdvla.config import Config, apply_overrides, load_yaml
from rdvla.errors import ConfigError
from rdvla.horizons import LinearDecay, make_horizon
from rdvla.stops import StopRule
from rdvla.types import ActionConvention


def test_linear_decay_is_the_released_formula():
    horizon = LinearDecay()
    assert [horizon.steps(r, 8) for r in (1, 6, 7, 8, 9, 10, 12, 13, 14, 32)] == [8, 8, 7, 7, 6, 5, 3, 2, 2, 2]
    assert horizon.steps(1, 5) == 5


def test_the_two_binary_rules_point_in_opposite_directions():
    assert [make_horizon("binary_paper").steps(r, 8) for r in (4, 5)] == [8, 4]
    assert [make_horizon("binary_released").steps(r, 8) for r in (4, 5)] == [4, 8]


def test_dynamic_buckets_by_hand():
    """After 4, 4, 4, 4 the decision of 9 has mean 5, deviation 2: above 7. Then 5: mean 5, deviation 1.83."""
    paper, released = make_horizon("dynamic_paper"), make_horizon("dynamic_released")
    assert [paper.steps(r, 8) for r in (4, 4, 4, 4, 9, 5, 1, 4)] == [5, 5, 5, 5, 2, 4, 8, 6]
    assert [released.steps(r, 8) for r in (4, 4, 4, 4, 9, 5, 1, 4)] == [5, 5, 5, 5, 8, 6, 2, 4]


@pytest.mark.parametrize("name", ["0", "-3", "linear_decy"])
def test_unknown_horizons_are_refused(name):
    with pytest.raises(ConfigError):
        make_horizon(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "action_l3"}, "action_l2"),
        ({"max_depth": 0}, "max_depth"),
        ({"min_depth": 5, "max_depth": 4}, "min_depth"),
        ({"threshold": 0.1}, "no threshold"),
        ({"name": "latent", "threshold": float("nan")}, "threshold"),
        ({"name": "latent", "threshold": True}, "threshold must be a finite number"),
        ({"name": "latent", "threshold": "low"}, "threshold must be a finite number"),
        ({"check_every": 0}, "check_every"),
    ],
)
def test_impossible_stop_rules_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        StopRule(**changes)


def test_gripper_conventions_there_and_back():
    env = np.array([[0.5, -1.0], [0.5, 1.0]], np.float32)
    libero = ActionConvention("open_is_negative")
    np.testing.assert_array_equal(libero.from_env(env)[:, 1], [1, 0])
    np.testing.assert_array_equal(libero.to_env(libero.from_env(env)), env)
    calvin = ActionConvention("open_is_positive")
    np.testing.assert_array_equal(calvin.from_env(env)[:, 1], [0, 1])
    np.testing.assert_array_equal(calvin.to_env(calvin.from_env(env)), env)
    np.testing.assert_array_equal(ActionConvention("none").to_env(env), env)


class Inner(Config):
    learning_rate: float = 1e-3


class Outer(Config):
    optimizer: Inner = Inner()
    steps: int
    depths: tuple[int, ...] = (1,)
    mask: tuple[bool, ...] = (True,)


def test_overrides_reach_nested_keys_and_numbers_may_be_written_as_in_papers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("steps: 10\noptimizer:\n  learning_rate: 1e-4\n")
    config = Outer.build(apply_overrides(load_yaml(file), ["--optimizer.learning_rate=3e-4", "steps=5"]))
    assert config.optimizer.learning_rate == pytest.approx(3e-4)
    assert config.steps == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--optimizer.learning_rte=1"], "learning_rate"),
        (["--optimiser.learning_rate=1"], "optimizer"),
        (["--steps"], "section.key=value"),
        (["--steps=many"], "steps"),
        (["--steps=true"], "'steps' = True: true and false are no numbers"),
        (["--optimizer.learning_rate=yes"], "'optimizer.learning_rate' = True"),
        (
            ["--depths=[1, true]", "--mask=[true, false]"],
            r"configuration: 'depths' = \[1, True\]: true and false are no numbers$",
        ),
        (["--steps.more=1"], "is a value"),
    ],
)
def test_wrong_overrides_name_the_right_key(overrides, message):
    with pytest.raises(ConfigError, match=message):
        Outer.build(apply_overrides({"steps": 1}, overrides))


def test_a_missing_or_broken_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load_yaml(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_yaml(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    "kind", [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.RDVLAError)]
)
def test_every_error_goes_from_one_process_to_another(kind):
    error = kind("pybullet", "calvin") if kind is errors.MissingExtraError else kind("x = 3: give 2.")
    again = copy.copy(error)  # by the same method as pickle
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
