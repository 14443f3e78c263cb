"""Grippers and image paths of released checkpoints: said, given, derived by a stated rule, or refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import checkpoint_fakes as fakes
from rdvla.checkpoints import load, save_native, save_official
from rdvla.checkpoints.official_beside import derived_gripper
from rdvla.cli.main import app
from rdvla.data.images import ImagePath
from rdvla.data.stats import DatasetStatistics
from rdvla.errors import CheckpointError, ConfigError
from rdvla.policies import load_policy
from rdvla.policies.sources import LoadOptions, choose_policy
from rdvla.policy import Alarm, Ask
from rdvla.stops import StopRule
from rdvla.types import Observation


def statistics(*, action_dim=7, state_dim=8, masked=True):
    like = fakes.statistics(action_dim, state_dim)
    mask = np.array([True] * (action_dim - 1) + [not masked])
    return DatasetStatistics(replace(like.action, mask=mask), like.state, 50, 2)


def called(checkpoint, name, **changes):
    """Return the checkpoint with its statistics under another name."""
    return replace(checkpoint, statistics={name: statistics(**changes)})


@pytest.fixture(scope="module")
def released():
    return fakes.make("released")


@pytest.mark.parametrize(
    ("name", "changes", "gripper"),
    [
        ("libero_spatial_no_noops", {}, "open_is_negative"),
        ("LIBERO_10", {}, "open_is_negative"),
        ("calvin_abc", {}, "open_is_positive"),
        ("calvin_abc_rlds", {}, "open_is_positive"),
        ("aloha_fold", {"action_dim": 14, "state_dim": 14, "masked": False}, "none"),
        ("my_robot", {}, None),
        ("libero_joints", {"state_dim": 9}, None),
        ("calvin_joints", {"masked": False}, None),
    ],
)
def test_what_statistics_imply(name, changes, gripper):
    assert derived_gripper({name: statistics(**changes)}) == gripper


def test_statistics_of_two_robots_imply_nothing():
    assert derived_gripper({"libero_10": statistics(), "calvin_abc": statistics()}) is None
    assert derived_gripper({"libero_10": statistics(), "libero_goal": statistics()}) == "open_is_negative"


def test_a_calvin_checkpoint_opens_where_a_libero_one_closes(released, tmp_path):
    """The same network, the same statistics but for their name: only the sign of the gripper differs."""
    seen = Observation({name: np.zeros((64, 64, 3), np.uint8) for name in ("primary", "wrist")}, np.ones(8), "wait")
    actions = []
    for name, gripper in (("libero_spatial", "open_is_negative"), ("calvin_abc_rlds", "open_is_positive")):
        save_official(tmp_path / name, replace(called(released, name), actions=type(released.actions)(gripper)))
        assert not (json.loads((tmp_path / name / "rdvla.json").read_text()).keys() - {"vision"})
        policy = load_policy(tmp_path / name)
        assert policy.metadata.extra["gripper"] == gripper
        actions.append(policy.infer(seen, Ask(seed=0)).actions)
    assert np.array_equal(actions[0][:, :-1], actions[1][:, :-1])
    assert np.array_equal(actions[0][:, -1], -actions[1][:, -1])


def test_what_nobody_says_must_be_given(released, tmp_path):
    save_official(tmp_path / "policy", called(released, "my_robot"))
    beside = tmp_path / "policy" / "rdvla.json"
    document = json.loads(beside.read_text())
    assert document.pop("gripper") == "open_is_negative"
    beside.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"does not say what its last action is.*my_robot.*--gripper"):
        load(tmp_path / "policy")
    assert load(tmp_path / "policy", gripper="none").actions.gripper == "none"
    arguments = ["convert", str(tmp_path / "policy"), str(tmp_path / "ours")]
    with pytest.raises(CheckpointError, match="--gripper"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    result = CliRunner().invoke(app, [*arguments, "--gripper", "open_is_positive"], catch_exceptions=False)
    assert "gripper open_is_positive" in result.output
    assert load(tmp_path / "ours").actions.gripper == "open_is_positive"
    _, _, make = choose_policy(tmp_path / "policy", None, LoadOptions(gripper="none"))
    assert make().metadata.extra["gripper"] == "none"


def test_what_is_given_wins_over_the_name_of_the_statistics(released, tmp_path):
    save_official(tmp_path / "policy", released)
    assert load(tmp_path / "policy", gripper="open_is_positive").actions.gripper == "open_is_positive"


def test_what_a_checkpoint_says_is_not_overruled(tmp_path):
    save_native(tmp_path / "policy", fakes.make("released"))
    assert load_policy(tmp_path / "policy", gripper="open_is_negative").metadata.extra["gripper"] == "open_is_negative"
    with pytest.raises(ConfigError, match="says that its gripper is 'open_is_negative'; drop 'none'"):
        load_policy(tmp_path / "policy", gripper="none")


@pytest.mark.parametrize("gripper", ["none", "open_is_positive", "open_is_negative"])
def test_ours_in_the_released_layout_loads_back_the_same(tmp_path, gripper):
    """A gripper that is none, another image path, no step, a default rule: all that the layout has no place for."""
    checkpoint = replace(
        fakes.make("released", step=None, gripper=gripper),
        image_path=ImagePath(size=28, resize="box", crop_area=None),
        default_stop=StopRule("action_mse", 2e-3, min_depth=2, defer=0.1),
        alarm=Alarm(steps=120, alpha=0.1, episodes=50),
    )
    save_official(tmp_path / "policy", checkpoint)
    again = load(tmp_path / "policy")
    assert fakes.same_tensors(again, checkpoint)
    for field in ("actions", "image_path", "step", "default_stop", "alarm"):
        assert getattr(again, field) == getattr(checkpoint, field), field
    assert again.model.config == checkpoint.model.config


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"griper": "none"}, "Did you mean 'gripper'"),
        ({"gripper": "open"}, "gripper"),
        ({"images": {"size": 28, "resize": "cubic"}}, "cubic"),
        ({"vision": {"dino": True}}, "tower 'dino' must be a mapping"),
        ({"vision": {"patch_size": {}}}, "'patch_size'"),
        ({"default_stop": {"name": "action_l2", "threshold": float("nan")}}, "threshold"),
        ({"default_stop": {"name": "action_l2", "max_depth": True}}, "default_stop.max_depth' = True: true and false"),
        ({"images": {"size": 64}}, "64 pixels but the tower takes 28"),
    ],
)
def test_a_wrong_file_beside(released, tmp_path, document, message):
    save_official(tmp_path / "policy", released)
    beside = tmp_path / "policy" / "rdvla.json"
    beside.write_text(json.dumps(json.loads(beside.read_text()) | document))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "policy")


def test_an_adapter_is_known_by_its_base_too(tmp_path, monkeypatch):
    for name in ("adapter", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    monkeypatch.setattr(sys.modules["rdvla.checkpoints.load"], "find", lambda source, **_: Path(source))
    options = LoadOptions(base=str(tmp_path / "base"))
    _, plain, _ = choose_policy(tmp_path / "adapter", None)
    _, first, make = choose_policy(tmp_path / "adapter", None, options)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"another")
    _, second, _ = choose_policy(tmp_path / "adapter", None, options)
    assert len({plain, first, second}) == 3
    with pytest.raises(CheckpointError, match="another checkpoint"):
        make()
