"""The second task: where the robot will be at the next keyframe."""

import json
import math

import numpy as np
import pytest
import torch
from train_fakes import IMAGE, run, settings

from rdvla import checkpoints
from rdvla.data.lerobot_meta import Feature
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.errors import ConfigError
from rdvla.report.training import write_training_report
from rdvla.train.config import TrainConfig
from rdvla.train.start import Origin, open_split

ALONE = {"entries": [0, 1], "alone": True}


def logged(folder, key):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def record_goals(root, *, episodes, seed=0, begins_there=False):
    """Record an arm that goes from the middle to where the pictures' colour says, and closes there."""
    rng = np.random.default_rng(seed)
    names = ("height", "width", "channels")
    features = {"observation.state": Feature("float32", (8,)), "action": Feature("float32", (7,))}
    features |= {key: Feature("image", (64, 64, 3), names) for key in IMAGE.values()}
    writer = LeRobotWriter(root, fps=20, features=features)
    for _ in range(episodes):
        goal = rng.choice([-1.0, 1.0], 2)
        state, action = rng.normal(0, 0.01, (4, 8)), np.zeros((4, 7))
        state[2:, :2] = goal
        state[0, :2] = goal if begins_there else state[0, :2]
        action[:, 6] = (-1, -1, 1, 1)
        picture = np.full((64, 64, 3), (*(128 + 127 * goal), 128), dtype=np.uint8)
        writer.add_episode(
            RecordedEpisode(
                task="follow the colour",
                columns={"observation.state": state.astype(np.float32), "action": action.astype(np.float32)},
                images={key: [picture] * 4 for key in IMAGE.values()},
            )
        )
    writer.finalize()
    return root


def test_samples_bring_the_state_at_the_next_change_of_the_gripper(tmp_path):
    whole = LeRobotDataset.open(record_goals(tmp_path / "goals", episodes=2), chunk_size=2)
    assert whole.batch([0]).keyframe is None
    dataset = whole.with_keyframes([0, 1], 0.1)
    keyframe = dataset.batch(range(8)).keyframe
    states = dataset.source.columns["observation.state"]
    np.testing.assert_array_equal(keyframe.state, states[[2, 2, 3, 3, 6, 6, 7, 7]])
    assert keyframe.is_far.tolist() == [True, True, False, False] * 2
    assert dataset.far_samples().anchors.tolist() == [0, 1, 4, 5]
    with pytest.raises(ConfigError, match=r"keyframe\.entries: the state has the entries 0 to 7, not 8"):
        whole.with_keyframes([8], 0.0)


def test_the_backbone_learns_what_only_the_pictures_say(tmp_path):
    """Always the mean errs by 1: goals are -1 or 1."""
    dataset = record_goals(tmp_path / "goals", episodes=60)
    config = {
        "data": {"root": str(dataset), "validation_fraction": 0.2, "augmentation": {}, "state_noise": 0.0},
        "keyframe": {"entries": [0, 1], "beyond": 0.05, "alone": True},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 10},
        "batch_size": 16,
        "max_steps": 80,
        "ema_decay": 0.0,
    }
    frequencies = {"save_freq": 80, "validate_freq": 80, "log_freq": 80, "validation_samples": 64}
    run(dataset, tmp_path / "run", **config, **frequencies)
    assert logged(tmp_path / "run", "validation_keyframe_l1")[-1] < 0.5
    assert not logged(tmp_path / "run", "validation_l1/depth_1"), "no actions were learned"
    write_training_report(tmp_path / "run", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "mean absolute error of the normalised state at the next keyframe" in page
    assert "Held-out episodes, averaged weights: how far the keyframe" in page


def test_alone_it_trains_the_backbone_and_leaves_the_head(dataset, tmp_path):
    ends = [run(dataset, tmp_path / str(steps), max_steps=steps, ema_decay=0.0, keyframe=ALONE) for steps in (1, 3)]
    first, last = (checkpoints.load(end).model.state_dict() for end in ends)
    assert not torch.equal(first["backbone.latent_tokens"], last["backbone.latent_tokens"])
    assert torch.equal(first["head.coda.output_proj.weight"], last["head.coda.output_proj.weight"])
    assert first.keys() == last.keys()
    assert not any("keyframe" in name for name in last)


def test_beside_actions_both_are_judged_and_an_interrupted_run_goes_on(dataset, tmp_path):
    keyframe = {"weight": 0.5}
    whole = run(dataset, tmp_path / "whole", keyframe=keyframe)
    run(dataset, tmp_path / "parts", max_steps=2, keyframe=keyframe)
    parts = run(dataset, tmp_path / "parts", keyframe=keyframe)
    plain = run(dataset, tmp_path / "plain")
    weights = [(end / "model.safetensors").read_bytes() for end in (whole, parts, plain)]
    assert weights[0] == weights[1] != weights[2]
    for key in ("validation_keyframe_l1", "validation_l1/depth_2"):
        assert all(math.isfinite(value) for value in logged(tmp_path / "whole", key))
        assert logged(tmp_path / "whole", key)


def test_the_second_task_is_judged_on_far_samples_wherever_those_of_the_actions_lie(tmp_path):
    """The one held-out sample of the actions is an episode's first, and near."""
    dataset = record_goals(tmp_path / "goals", episodes=4, begins_there=True)
    changes = {"data": {"root": str(dataset), "validation_fraction": 0.5}, "validation_samples": 1, "validate_freq": 1}
    run(dataset, tmp_path / "run", max_steps=1, keyframe={"entries": [0, 1], "beyond": 0.05}, **changes)
    (error,) = logged(tmp_path / "run", "validation_keyframe_l1")
    assert math.isfinite(error)


def test_what_does_not_go_together_is_refused(dataset, tmp_path):
    for change, reason in (
        ({"sharded": True}, "drop sharded, captured"),
        ({"captured": True}, "drop sharded, captured"),
        ({"data": {"root": str(dataset), "gripper": "none"}}, "needs a gripper to go by"),
        (
            {"data": {"root": str(dataset), "gripper": "none", "sampling": "resting"}},
            r"sampling: resting needs a",
        ),
        ({"data": {"root": str(dataset), "gripper": "none", "gripper_changes": 2}}, r"data\.gripper_changes needs a"),
        (
            {"evaluation": {"every": 1, "suites": ["toy"]}, "keyframe": ALONE},
            "no actions that an evaluation could play",
        ),
    ):
        with pytest.raises(ConfigError, match=reason):
            TrainConfig.build(settings(dataset, tmp_path / "x", **({"keyframe": {}} | change)))
    with pytest.raises(ConfigError, match=r"keyframe\.beyond 100\.0: no sample of the training episodes is so far"):
        run(dataset, tmp_path / "far", keyframe={"beyond": 100})


def test_a_run_draws_changes_of_the_gripper_as_often_as_it_says(tmp_path):
    dataset = record_goals(tmp_path / "goals", episodes=4)
    for times in (1, 3):
        data = {"root": str(dataset), "gripper_changes": times, "validation_fraction": 0.25}
        config = TrainConfig.build(settings(dataset, tmp_path / "x", data=data))
        split = open_split(config, Origin.load(config), None)
        changing = [row for row in split.training.anchors if row % 4 < 3]  # of chunks longer than an episode
        assert len(changing) == 3 * 3 * times
        assert len(split.validation) == 4


def test_one_kind_of_episode_may_be_learned_alone(dataset, tmp_path):
    """A new tokenizer knows the other sentences all the same."""
    data = {"root": str(dataset), "validation_fraction": 0.34}
    run(dataset, tmp_path / "red", max_steps=1, data=data | {"instructions": "RED|mauve"})
    run(dataset, tmp_path / "all", max_steps=1, data=data)
    red, everything = (checkpoints.load(tmp_path / name / "policy") for name in ("red", "all"))
    (statistics,) = red.statistics.values()
    assert statistics.num_trajectories == 2, "three are red, one of them is held out"
    assert red.tokenizer.get_vocab() == everything.tokenizer.get_vocab()
    for pattern, reason in (
        ("mauve", "'mauve' is found in no instruction; there are 2"),
        ("(", r"data\.instructions.*not a regular expression"),
    ):
        with pytest.raises(ConfigError, match=reason):
            run(dataset, tmp_path / "none", data=data | {"instructions": pattern})
