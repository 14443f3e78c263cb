"""`rdvla collect` as a command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rdvla.cli.collect import _choose_expert, collect
from rdvla.cli.main import app
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.errors import CheckpointError, ConfigError
from rdvla.policies.sources import LoadOptions, choose_policy, load_checkpoint


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


@pytest.mark.parametrize(("suite", "tasks", "message"), [("toi", None, "unknown suite"), ("toy", "99", "no task 99")])
def test_a_slip_is_said_before_the_checkpoint_is_looked_at(tmp_path, suite, tasks, message):
    with pytest.raises(ConfigError, match=message):
        collect(suite, tmp_path / "out", task_ids=tasks, take_over_from=str(tmp_path / "absent"))
    assert not (tmp_path / "out").exists()


def test_a_take_over_says_how_the_policy_computes(tmp_path):
    (tmp_path / "config.json").write_text('{"format": "rdvla"}')
    factory, name = _choose_expert(str(tmp_path), 7, LoadOptions(statistics="a", device="cpu"))
    assert name.endswith("(statistics=a), after 0 to 7 steps")
    assert factory.keywords["max_policy_steps"] == 7
    assert factory.keywords["make_policy"].args[:2] == (str(tmp_path), LoadOptions(statistics="a"))


SHIPPED = str(Path(__file__).parents[2] / "checkpoints" / "rdvla_tiny_libero")
STATISTICS = "libero_experts+takeover_spatial+takeover_again"


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_an_expert_takes_over_from_the_shipped_policy(tmp_path):
    """Through the command line: the policy moves first, so the recording starts elsewhere than without it."""
    arguments = ["collect", "--suite", "toy", "--task-ids", 0, "--episodes", 1, "--workers", 1, "--storage", "image"]
    arguments += ["--camera-size", 64, "--seed", 3]  # the policy acts for three steps
    options = ["--take-over-from", SHIPPED, "--policy-steps", 4, "--statistics", STATISTICS]
    assert call(*arguments, "--output", tmp_path / "plain").exit_code == 0
    assert call(*arguments, *options, "--output", tmp_path / "taken").exit_code == 0
    settings = json.loads((tmp_path / "taken/collect.json").read_text())["settings"]
    expected = rf"checkpoint [0-9a-f]{{16}} \(statistics={re.escape(STATISTICS)}\), after 0 to 4 steps"
    assert re.fullmatch(expected, settings["takeover"])
    plain, taken = (LeRobotDataset.open(tmp_path / name, chunk_size=1) for name in ("plain", "taken"))
    assert not np.array_equal(plain.batch([0]).state, taken.batch([0]).state)
    with pytest.raises(CheckpointError, match="statistics"):
        call(*arguments, *options[:-1], "unknown", "--output", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_statistics_are_chosen_by_the_command_line(tmp_path):
    arguments = ["eval", "--suite", "toy", "--task-ids", 0, "--episodes", 1, "--depth", 1, "--checkpoint", SHIPPED]
    assert call(*arguments, "--statistics", STATISTICS, "--output", tmp_path / "run").exit_code == 0
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["config"]["policy"] == f"{SHIPPED} (statistics={STATISTICS})"
    with pytest.raises(CheckpointError, match="statistics"):
        call(*arguments, "--statistics", "unknown", "--output", tmp_path / "wrong")


def test_a_machine_with_another_checkpoint_is_refused(tmp_path):
    _, digest, make_policy = choose_policy(SHIPPED, None)
    assert make_policy().metadata.action_dim == 7
    (tmp_path / "config.json").write_text('{"format": "rdvla"}')
    with pytest.raises(
        CheckpointError, match=f"is another checkpoint .* than the one that the command began with \\({digest}"
    ):
        load_checkpoint(str(tmp_path), LoadOptions(), expected=digest)
