"""A training run from start, or from where it was interrupted, to its end."""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from rdvla.checkpoints.native import save_native
from rdvla.data.findings import Finding
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.errors import ConfigError, TrainingError
from rdvla.files import owned_folder
from rdvla.policies.io import PolicyIO
from rdvla.policy import PolicyMetadata
from rdvla.train.batches import Preparation, TrainBatch, collate, training_batches
from rdvla.train.config import TrainConfig
from rdvla.train.distributed import Ranks
from rdvla.train.learner import Learner
from rdvla.train.log import MetricsLog, open_log
from rdvla.train.precision import choose_device
from rdvla.train.run import RunFolder
from rdvla.train.start import Origin, Split, new_checkpoint, open_split
from rdvla.train.step import Compute
from rdvla.types import ActionConvention


class Watcher:
    """Is told what happens, in the first process only; override what is of interest."""

    def decoding(self, done: int, total: int) -> None:
        """So many episodes' images of all are in the cache."""

    def found(self, finding: Finding) -> None:
        """Something is worth knowing about the dataset; said before the first step."""

    def started(self, step: int) -> None:
        """Training begins, or goes on, after `step`."""

    def stepped(self, step: int, numbers: Mapping[str, float]) -> None:
        """A step was taken."""

    def logged(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers were logged: of a step, a validation or an evaluation."""

    def warned(self, message: str) -> None:
        """Something is not as it should be, but training goes on."""

    def will_evaluate(self, policy: PolicyMetadata) -> None:
        """The run's evaluation will be played with such policies; called before the first step.

        Raises:
            ConfigError: that will not be possible.
        """
        raise ConfigError(f"evaluation: nothing here can play '{policy.name}'; run it by 'rdvla train'.")

    def evaluate(self, policy: Path, output: Path) -> Mapping[str, float]:
        """Play the run's evaluation with a saved policy; return what to log.

        Raises:
            ConfigError: nobody here can.
        """
        raise ConfigError(f"evaluation: nothing here can play '{policy}' into '{output}'; run it by 'rdvla train'.")


def train(config: TrainConfig, watcher: Watcher | None = None) -> Path:
    """Run (or continue) training and return the directory of the final policy.

    On the CPU the result depends on the configuration alone: an interrupted and continued run equals an
    uninterrupted one bit for bit, given the same versions and number of threads and processes. Under torchrun, n
    processes with micro-batches of b samples take the steps of one process with b x n. The first process writes the
    files.

    Args:
        config: the run.
        watcher: is told what happens.

    Raises:
        RDVLAError: bad configuration, dataset or run folder; a loss that is not finite; another process that failed.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    ranks = Ranks()
    compute = Compute(choose_device(config.device, local_rank=ranks.local_index), config.arithmetic)
    busy = f"another `rdvla train` is writing to '{config.output}'; wait for it, or choose another output."
    owned = owned_folder(config.output, busy=busy) if ranks.is_first else nullcontext()
    with owned, ranks.on(compute.device, hang_timeout_s=config.hang_timeout_s):
        return _Run(config, ranks, compute, watcher or Watcher()).finish()


class _Run:
    """One process's part of a run."""

    def __init__(self, config: TrainConfig, ranks: Ranks, compute: Compute, watcher: Watcher) -> None:
        self._config, self._ranks, self._watcher = config, ranks, watcher
        if not ranks.is_first:
            ranks.wait()  # for the first process's run folder and image cache
        self._folder = RunFolder(config)
        origin = Origin.load(config)
        self._split: Split = open_split(config, origin, watcher.decoding if ranks.is_first else None)
        if ranks.is_first:
            for finding in self._split.training.look_through(ActionConvention(config.data.gripper)):
                watcher.found(finding)
            if config.data.validation_fraction > 0 and self._split.validation is None:
                watcher.warned(
                    f"data.validation_fraction {config.data.validation_fraction} of so few episodes is none: there is "
                    "no validation."
                )
            ranks.wait()
        checkpoint = new_checkpoint(config, self._split, origin)
        self._io = PolicyIO.of(checkpoint, config.data.name)
        if config.evaluation is not None and ranks.is_first:
            head, extra = checkpoint.model.config.head, {"gripper": checkpoint.actions.gripper}
            cameras = checkpoint.model.config.cameras
            watcher.will_evaluate(
                PolicyMetadata(config.data.name, cameras, head.state_dim, head.action_dim, head.chunk_size, extra)
            )
        self._compute = compute
        self._learner = Learner(config, checkpoint, ranks=ranks, compute=compute)
        self._start = ranks.from_first(self._folder.newest_intact(watcher.warned) if ranks.is_first else 0)
        if self._start:
            self._folder.require_same_data(self._start, checkpoint)
        if self._start > config.max_steps:
            raise TrainingError(
                f"'{self._folder.path}' is at step {self._start} already, beyond max_steps {config.max_steps}."
            )
        if ranks.is_first:
            self._folder.begin()
        if self._start:
            self._learner.load(self._folder.load(self._start))
        ranks.wait()  # nobody writes a newer checkpoint before everybody has read this one
        self._log: MetricsLog | None = open_log(config, from_step=self._start) if ranks.is_first else None
        self._clock, self._clocked = time.perf_counter(), self._start

    def finish(self) -> Path:
        """Take the remaining steps."""
        config, ranks = self._config, self._ranks
        batches = self._batches()
        takes_part = ranks.is_first or self._learner.sharded
        if ranks.is_first:
            self._watcher.started(self._start)
            if self._start and self._log is not None and not self._log.has(self._start, "success/"):
                self._play(self._start)  # which an interruption kept from being played, or played to the end
        ranks.wait()
        for step in range(self._start, config.max_steps):
            numbers = self._learner.step(step, [next(batches) for _ in range(config.grad_accumulation_steps)])
            if ranks.is_first:
                self._watcher.stepped(step + 1, numbers)
                self._report(step + 1, numbers)
            if self._pauses(step + 1):
                if takes_part:
                    self._judge_and_save(step + 1)
                ranks.wait()
        final = self._folder.path / "policy"
        policy = self._learner.policy(config.max_steps) if takes_part else None
        if self._log is not None and policy is not None:
            self._log.close()
            save_native(final, policy, replace=True)
        ranks.wait()
        return final

    def _batches(self) -> Iterator[TrainBatch]:
        """Return this process's micro-batches: every count-th of all, so that none is taken twice."""
        config, ranks = self._config, self._ranks
        per_step = config.grad_accumulation_steps * ranks.count
        prepare = Preparation(
            self._split.training,
            self._io,
            batch_size=config.batch_size,
            augmentation=config.data.augmentation,
            state_noise=config.data.state_noise,
            seed=config.seed,
            augment_later=self._compute.device.type == "cuda",
        )
        positions = range(self._start * per_step, config.max_steps * per_step)[ranks.index :: ranks.count]
        return training_batches(prepare, positions, num_workers=config.num_workers)

    def _pauses(self, done: int) -> bool:
        config = self._config
        return done == config.max_steps or done % config.validate_freq == 0 or done % config.save_freq == 0

    def _report(self, done: int, numbers: Mapping[str, float]) -> None:
        config = self._config
        if done % config.log_freq and done != config.max_steps:
            return
        samples = (done - self._clocked) * config.grad_accumulation_steps * self._ranks.count * config.batch_size
        speed = samples / (time.perf_counter() - self._clock)
        self._clock, self._clocked = time.perf_counter(), done
        self._record(done, {**numbers, "samples_per_second": speed, "memory_gb": _memory_gb()})

    def _judge_and_save(self, done: int) -> None:
        """Validate, save and play, whatever is due after step `done`.

        The first process does it, with the others' help where weights are sharded.
        """
        config, last = self._config, done == self._config.max_steps
        if self._split.validation is not None and (last or done % config.validate_freq == 0):
            held_out = self._split.validation
            far = self._held_out(held_out.far_samples())
            self._record(done, self._learner.validate(self._held_out(held_out), far))
        if last or done % config.save_freq == 0:
            policy, state = self._learner.policy(done), self._learner.state()
            if self._ranks.is_first:
                self._folder.save(done, policy, {"step": done, **state})
                self._play(done)

    def _play(self, done: int) -> None:
        """Play the evaluation that is due after step `done`, if any, or the rest of it."""
        config = self._config
        if config.evaluation is not None and (done == config.max_steps or done % config.evaluation.every == 0):
            output = self._folder.path / "evaluations" / f"{done:06d}"
            self._record(done, self._watcher.evaluate(self._folder.directory(done) / "policy", output))

    def _held_out(self, dataset: LeRobotDataset) -> Iterator[TrainBatch]:
        count = min(self._config.validation_samples, len(dataset))
        indices = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
        for chosen in np.array_split(indices, max(1, -(-count // self._config.batch_size))):
            yield collate(self._io, dataset.batch(chosen))

    def _record(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log.write(step, numbers)
            self._watcher.logged(step, numbers)


def _memory_gb() -> float:
    """Return the most memory in use so far, in 10^9 bytes: the GPU's if there is one, else the process's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
