"""Training end to end on a small recorded dataset: through the command line, interrupted and continued."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from train_fakes import IMAGE, record, run, settings

from rdvla import checkpoints
from rdvla.config import apply_overrides
from rdvla.data.augmentation import Augmentation
from rdvla.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from rdvla.policies.io import PolicyIO
from rdvla.policies.network import load_policy
from rdvla.policy import Ask
from rdvla.train.batches import Preparation, sample_indices, training_batches
from rdvla.train.config import OptimizerConfig, TrainConfig
from rdvla.train.loop import Watcher, train
from rdvla.train.optim import rate_factor
from rdvla.train.start import Origin, new_checkpoint, open_split
from rdvla.train.step import Average
from rdvla.types import Observation


class Losses(Watcher):
    """Keeps the losses of logged steps."""

    def __init__(self):
        self.seen = []

    def logged(self, step, numbers):
        self.seen.append(numbers["loss"])


def test_an_interrupted_run_continues_bit_for_bit(dataset, tmp_path):
    whole = run(dataset, tmp_path / "whole")
    run(dataset, tmp_path / "parts", max_steps=4)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "000004")
    shutil.rmtree(tmp_path / "parts" / "policy")
    parts = run(dataset, tmp_path / "parts")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4], "no line twice"


@pytest.mark.slow
@pytest.mark.parametrize("keyframe", [None, {"weight": 2.0}, {"alone": True}])
def test_two_processes_take_the_steps_of_one(dataset, tmp_path, keyframe):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings(dataset, tmp_path / "two", batch_size=4, keyframe=keyframe)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "rdvla.train", "--config", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    run(dataset, tmp_path / "one", batch_size=8, keyframe=keyframe)

    def losses(folder):
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)
    assert (tmp_path / "two" / "report.html").exists()


def test_the_trained_policy_acts(dataset, tmp_path):
    policy = load_policy(run(dataset, tmp_path / "run", max_steps=2))
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in IMAGE}
    chunk = policy.infer(Observation(images, np.zeros(8, np.float32), "pick up the red block"), Ask(seed=0))
    assert chunk.actions.shape == (8, 7)
    assert set(np.unique(chunk.actions[:, 6])) <= {-1.0, 1.0}


def test_learning_happens(tmp_path):
    """Four frames can be memorised: the loss falls to a fraction."""
    dataset = record(tmp_path / "few", episodes=2, length=3)
    losses = Losses()
    config = settings(
        dataset,
        tmp_path / "run",
        max_steps=80,
        log_freq=80,
        save_freq=80,
        data={"root": str(dataset), "validation_fraction": 0, "augmentation": {}, "state_noise": 0},
        optimizer={"warmup_steps": 5, "learning_rate": 2e-3},
    )
    first = TrainConfig.build(config | {"log_freq": 1, "max_steps": 1, "output": str(tmp_path / "start")})
    train(first, losses)
    train(TrainConfig.build(config), losses)
    assert losses.seen[-1] < 0.6 * losses.seen[0]


def test_a_folder_belongs_to_one_configuration(dataset, tmp_path):
    run(dataset, tmp_path / "run", max_steps=1)
    with pytest.raises(TrainingError, match="batch_size"):
        run(dataset, tmp_path / "run", batch_size=2)


def test_a_run_of_an_earlier_version_goes_on(dataset, tmp_path):
    """Its folder does not say what has been added since; that is at its default, and may not be chosen otherwise."""
    run(dataset, tmp_path / "run", max_steps=1)
    file = tmp_path / "run" / "config.json"
    written = json.loads(file.read_text())
    for name in ("max_steps", "save_freq", "num_workers", "evaluation", "grad_accumulation_steps"):
        del written[name]
    del written["data"]["timestamps"]
    file.write_text(json.dumps(written))
    run(dataset, tmp_path / "run", max_steps=2)
    assert (tmp_path / "run" / "checkpoints" / "000002").is_dir()
    assert json.loads(file.read_text())["max_steps"] == 2
    with pytest.raises(TrainingError, match="is at step 2 already, beyond max_steps 1"):
        run(dataset, tmp_path / "run", max_steps=1)
    assert json.loads(file.read_text())["max_steps"] == 2
    for key in ("data", "grad_accumulation_steps"):
        other = {"data": {"root": str(dataset), "validation_fraction": 0.2, "timestamps": "frame_index"}}
        with pytest.raises(TrainingError, match=f"another {key};"):
            run(dataset, tmp_path / "run", **(other if key == "data" else {key: 2}))


def test_what_does_not_fit_is_said_before_training(dataset, tmp_path):
    with pytest.raises(DatasetError, match="missing"):
        run(tmp_path / "missing", tmp_path / "a")
    with pytest.raises(ConfigError, match="learning_rate"):
        TrainConfig.build(apply_overrides(settings(dataset, tmp_path), ["--optimizer.learning_rat=1"]))
    with pytest.raises(DatasetError, match=r"observation\.images\.wrist"):
        run(dataset, tmp_path / "b", data={"root": str(dataset), "cameras": {"wrist": "observation.images.wrist"}})


def test_another_robots_sizes_fit(tmp_path):
    dataset = record(tmp_path / "wide", action_dim=9, episodes=2, length=3)
    changes = {"data": {"root": str(dataset), "gripper": "none", "validation_fraction": 0}}
    policy = load_policy(run(dataset, tmp_path / "run", max_steps=1, model={"head": {"chunk_size": 5}}, **changes))
    assert (policy.metadata.action_dim, policy.metadata.chunk_size) == (9, 5)


def test_weights_of_another_robot_are_refused(dataset, tmp_path):
    start = run(dataset, tmp_path / "start", max_steps=1)
    wide = record(tmp_path / "wide", action_dim=9, episodes=2, length=3)
    with pytest.raises(CheckpointError, match="action size 9"):
        run(wide, tmp_path / "run", model={"init_from": str(start)})
    with pytest.raises(ConfigError, match=r"model\.head\.chunk_size"):
        run(dataset, tmp_path / "run", model={"init_from": str(start), "head": {"chunk_size": 4}})


def test_training_goes_as_deep_as_the_continued_run_says(dataset, tmp_path):
    start = run(dataset, tmp_path / "start", max_steps=1)
    depths = {"mean_recurrence": 3, "backprop_depth": 2, "random_depth": False}
    end = run(dataset, tmp_path / "run", max_steps=1, model={"init_from": str(start), "head": depths})
    assert checkpoints.load(end).model.depth_sampler(torch.Generator()) == (1, 2)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [numbers["depth"] for numbers in logged if "depth" in numbers] == [3]
    before, after = (checkpoints.load(path).model.config for path in (start, end))
    assert after == before.model_copy(update={"head": before.head.model_copy(update=depths)})


def test_max_steps_below_what_is_done_is_refused(dataset, tmp_path):
    run(dataset, tmp_path / "run", max_steps=2)
    with pytest.raises(TrainingError, match="step 2 already"):
        run(dataset, tmp_path / "run", max_steps=1)


def test_every_sample_comes_once_per_epoch():
    order = np.concatenate([sample_indices(10, 4, seed=0, position=position) for position in range(5)])
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:]) == list(range(10))
    assert not np.array_equal(order[:10], order[10:])


def test_a_batch_depends_on_its_position_alone(dataset):
    """Whether a thread or processes prepare it, and wherever its images are augmented."""
    config = TrainConfig.build(settings(dataset, "unused"))
    origin = Origin.load(config)
    split = open_split(config, origin, None)
    io = PolicyIO.of(new_checkpoint(config, split, origin))
    augmentation = Augmentation(shift=2, brightness=0.2, contrast=0.2, hue=0.1)
    prepare = Preparation(split.training, io, 3, augmentation, config.data.state_noise, seed=0)
    later = replace(prepare, augment_later=True)
    alone = list(training_batches(prepare, range(1, 9, 2)))
    shared = list(training_batches(prepare, range(1, 9, 2), num_workers=2))
    postponed = [batch.to(torch.device("cpu")) for batch in training_batches(later, range(1, 9, 2))]
    assert len(alone) == len(shared) == len(postponed) == 4
    for expected, batch, late in zip(alone, shared, postponed, strict=True):
        assert torch.equal(batch.inputs.images, expected.inputs.images)
        assert torch.equal(batch.inputs.state, expected.inputs.state)
        assert (late.inputs.images.int() - expected.inputs.images.int()).abs().max() <= 1
        assert torch.equal(late.inputs.state, expected.inputs.state)
        assert late.factors is None
    assert not torch.equal(alone[0].inputs.images, next(training_batches(later, range(1, 2))).inputs.images)


def test_schedule_by_hand():
    config = OptimizerConfig(warmup_steps=2, final_fraction=0.1)
    rates = [rate_factor(config, step, 6) for step in range(7)]
    assert rates == pytest.approx(
        [0.5, 1.0, 1.0, 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4)), 0.55, 0.2318, 0.1], abs=1e-4
    )


def test_the_average_forgets_its_start():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average = Average(module, 0.5)
    torch.nn.init.ones_(module.weight)
    average.update(module)
    average.update(module)
    assert average.weights["weight"].item() == pytest.approx(1 - 0.1 * (2 / 11))


def test_the_average_follows_weights_that_are_bfloat16():
    """A 500th of the way is less than a step of bfloat16."""
    module = torch.nn.Linear(1, 1, bias=False).bfloat16()
    torch.nn.init.ones_(module.weight)
    average = Average(module, 0.998)
    average.updates = 100_000
    torch.nn.init.constant_(module.weight, 1.125)
    for _ in range(5000):
        average.update(module)
    assert average.weights["weight"].item() == pytest.approx(1.125, abs=1e-4)
    torch.nn.init.constant_(module.weight, 2)
    with average.used_by(module):
        assert module.weight.item() == 1.125
    assert module.weight.item() == 2
    assert average.weights["weight"].item() == pytest.approx(1.125, abs=1e-4)
