"""A training run from start, or from where it was interrupted, to its end."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdvla import __version__
from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.native import load_native, save_native
from rdvla.data.frame_cache import FrameTransform
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.errors import ConfigError, TrainingError
from rdvla.model.config import HeadConfig, RDVLAConfig, rdvla_tiny
from rdvla.model.prompt import Prompt, train_tokenizer
from rdvla.model.rdvla import RDVLA
from rdvla.train.batches import Collator, TrainBatch, training_batches
from rdvla.train.config import TrainConfig
from rdvla.train.distributed import Ranks
from rdvla.train.optim import learning_rate, make_optimizer
from rdvla.train.run import MetricsLog, RunFolder
from rdvla.train.step import Average, step_generator, train_step, validation_losses
from rdvla.types import ActionConvention

Report = Callable[[int, Mapping[str, float]], None]
"""Called with (step, numbers) whenever something is logged."""


@dataclass(frozen=True)
class Split:
    """Training and held-out episodes of one dataset."""

    training: LeRobotDataset
    validation: LeRobotDataset | None


def train(config: TrainConfig, *, report: Report, decoding: Callable[[int, int], None] | None = None) -> Path:
    """Run (or continue) training and return the directory of the final policy.

    On the CPU the result depends on the configuration alone: an interrupted and continued run equals an
    uninterrupted one bit for bit, given the same versions and number of threads. Under torchrun, n processes with
    micro-batches of b samples take the steps of one process with b x n; on a CPU, two processes of one thread are
    faster than one of two. The first process writes the files.

    Args:
        config: the run.
        report: receives the logged numbers.
        decoding: called with (done, total) episodes while images are decoded into the cache.

    Raises:
        RDVLAError: bad configuration, dataset or run folder; a loss that is not finite.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with Ranks() as ranks:
        return _train(config, ranks, report, decoding)


def _train(config: TrainConfig, ranks: Ranks, report: Report, decoding: Callable[[int, int], None] | None) -> Path:
    if not ranks.is_first:
        ranks.wait()  # for the first rank's run folder and image cache
    run = RunFolder(config, write=ranks.is_first)
    origin = None if config.model.init_from is None else load_native(config.model.init_from)
    chunk_size = origin.model.config.head.chunk_size if origin else config.model.head.chunk_size
    split = open_split(config, chunk_size or HeadConfig().chunk_size, decoding)
    if ranks.is_first:
        ranks.wait()
    checkpoint = new_checkpoint(config, split, origin)
    model = checkpoint.model.train()
    optimizer = make_optimizer(model, config.optimizer)
    average = Average(model, config.ema_decay)

    start = 0
    if (state := run.load_latest()) is not None:
        start = state["step"]
        if start > config.max_steps:
            raise TrainingError(f"'{run.path}' is at step {start} already, beyond max_steps {config.max_steps}.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights, average.updates = state["average"], state["updates"]
    ranks.wait()  # nobody writes a newer checkpoint before everybody has read this one
    log = MetricsLog(run.path, from_step=start) if ranks.is_first else None
    accumulate = config.grad_accumulation_steps
    batches = training_batches(
        split.training,
        _collator(config, checkpoint),
        batch_size=config.batch_size,
        augmentation=config.data.augmentation,
        state_noise=config.data.state_noise,
        seed=config.seed,
        positions=range(start * accumulate * ranks.count, config.max_steps * accumulate * ranks.count)[
            ranks.index :: ranks.count
        ],
    )
    clock, clocked = time.perf_counter(), start
    for step in range(start, config.max_steps):
        rate = learning_rate(config.optimizer, step, config.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers = train_step(
            model,
            optimizer,
            [next(batches) for _ in range(accumulate)],
            ranks=ranks,
            generator=step_generator(config.seed, step),
            clip_grad_norm=config.optimizer.clip_grad_norm,
        )
        average.update(model)
        done = step + 1
        if log is None:
            continue
        if done % config.log_freq == 0:
            samples = (done - clocked) * accumulate * ranks.count * config.batch_size
            speed = samples / (time.perf_counter() - clock)
            clock, clocked = time.perf_counter(), done
            _record(log, report, done, {**numbers, "learning_rate": rate, "samples_per_second": speed})
        if split.validation is not None and (done % config.validate_freq == 0 or done == config.max_steps):
            _record(log, report, done, _validate(config, checkpoint, average, split.validation))
        if done % config.save_freq == 0 or done == config.max_steps:
            run.save(
                done,
                _averaged(checkpoint, average, done),
                {
                    "step": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.weights,
                    "updates": average.updates,
                },
            )
    final = run.path / "policy"
    if log is not None:
        log.close()
        save_native(final, _averaged(checkpoint, average, config.max_steps), replace=True)
    ranks.wait()
    return final


def open_split(config: TrainConfig, chunk_size: int, decoding: Callable[[int, int], None] | None) -> Split:
    """Open the dataset and hold out every n-th episode.

    Raises:
        DatasetError: the dataset is missing or damaged, or lacks a camera.
        ConfigError: nothing is left to train on.
    """
    images = config.data.images
    dataset = LeRobotDataset.open(
        config.data.root,
        chunk_size=chunk_size,
        cameras=config.data.cameras,
        transform=FrameTransform(str(images), images.shrink),
        sampling=config.data.sampling,
        progress=decoding,
    )
    held_out = round(len(dataset.episodes) * config.data.validation_fraction)
    if held_out == 0:
        return Split(dataset, None)
    positions = np.linspace(0, len(dataset.episodes) - 1, held_out).round().astype(int)
    validation = {dataset.episodes[position] for position in positions}
    training = [episode for episode in dataset.episodes if episode not in validation]
    if not training:
        raise ConfigError(
            f"validation_fraction {config.data.validation_fraction} of {len(dataset.episodes)} episodes leaves none."
        )
    return Split(dataset.select(training), dataset.select(sorted(validation)))


def new_checkpoint(config: TrainConfig, split: Split, origin: Checkpoint | None) -> Checkpoint:
    """Return the policy at step 0: random weights from the seed, or those of `origin`.

    Raises:
        ConfigError: `origin` has other cameras than the dataset's mapping.
        CheckpointError: `origin` has another state or action size than the dataset.
    """
    convention = ActionConvention(config.data.gripper)
    statistics = {config.data.root.name: split.training.statistics(convention)}
    notes = {"recipe": config.model_dump(mode="json", exclude={"output"}), "rdvla": __version__}
    if origin is not None:
        model, tokenizer = origin.model, origin.tokenizer
        if set(model.config.cameras) != set(config.data.cameras):
            raise ConfigError(
                f"data.cameras names {sorted(config.data.cameras)}, the weights expect {sorted(model.config.cameras)}."
            )
    else:
        tokenizer = train_tokenizer(split.training.instructions, vocab_size=config.model.vocab_size)
        torch.manual_seed(config.seed)
        model = RDVLA(_network(config, split.training, vocab_size=tokenizer.get_vocab_size()))
    model = model.float()
    return Checkpoint(model, statistics, tokenizer, image_path=config.data.images, actions=convention, notes=notes)


def _network(config: TrainConfig, dataset: LeRobotDataset, *, vocab_size: int) -> RDVLAConfig:
    """Return the preset, fitted to the dataset's cameras and sizes."""
    preset = rdvla_tiny(vocab_size).model_dump()
    preset["cameras"] = tuple(config.data.cameras)
    preset["head"] |= {"state_dim": dataset.state_size, "action_dim": dataset.action_size}
    preset["head"] |= config.model.head.model_dump(exclude_none=True)
    return RDVLAConfig.build(preset)


def _collator(config: TrainConfig, checkpoint: Checkpoint) -> Collator:
    return Collator(
        cameras=checkpoint.model.config.cameras,
        statistics=checkpoint.statistics[config.data.root.name],
        convention=checkpoint.actions,
        prompt=Prompt(checkpoint.tokenizer, checkpoint.model.config.prompt),
    )


def _averaged(checkpoint: Checkpoint, average: Average, step: int) -> Checkpoint:
    model = RDVLA(checkpoint.model.config)
    model.load_state_dict(average.weights)
    return Checkpoint(
        model.eval(),
        checkpoint.statistics,
        checkpoint.tokenizer,
        image_path=checkpoint.image_path,
        actions=checkpoint.actions,
        step=step,
        notes=checkpoint.notes,
    )


def _validate(
    config: TrainConfig, checkpoint: Checkpoint, average: Average, dataset: LeRobotDataset
) -> dict[str, float]:
    model = _averaged(checkpoint, average, 0).model
    collator = _collator(config, checkpoint)
    count = min(config.validation_samples, len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)

    def batches() -> Iterator[TrainBatch]:
        for chosen in np.array_split(indices, max(1, -(-count // config.batch_size))):
            yield collator(dataset.batch(chosen))

    losses = validation_losses(model, batches(), config.validation_depths, seed=config.seed)
    return {f"validation_l1/depth_{depth}": loss for depth, loss in losses.items()}


def _record(log: MetricsLog, report: Report, step: int, numbers: Mapping[str, float]) -> None:
    log.write(step, numbers)
    report(step, numbers)
