"""`rdvla collect` as a command: what it refuses before anything is loaded."""

import pytest

from rdvla.cli.collect import _choose_expert, collect
from rdvla.errors import CheckpointError, ConfigError
from rdvla.policies.sources import LoadOptions


def test_options_of_a_checkpoint_need_one(tmp_path):
    for options, match in [
        ({"device": "cuda", "statistics": "a"}, "statistics=a, device=cuda belongs to a checkpoint"),
        ({"policy_steps": 3}, "--policy-steps 3: give at least 1, and --take-over-from"),
        ({"take_over_from": "x", "policy_steps": 0}, "--policy-steps 0"),
        ({"address": "auto"}, "--address belongs to a Ray cluster"),
    ]:
        with pytest.raises(ConfigError, match=match):
            collect("toy", tmp_path / "out", **options)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        collect("toy", tmp_path / "out", take_over_from=str(tmp_path / "absent"), statistics="a")
    assert not (tmp_path / "out").exists()


def test_a_take_over_says_how_the_policy_computes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    factory, name = _choose_expert(str(tmp_path), 7, LoadOptions(statistics="a", device="cpu"))
    assert name.endswith("(statistics=a), after 0 to 7 steps")
    assert factory.keywords["max_policy_steps"] == 7
    assert factory.keywords["make_policy"].args == (str(tmp_path), LoadOptions(statistics="a"))
