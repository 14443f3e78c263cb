"""The run folder: what a training run leaves behind and continues from.

OUTPUT/config.json                       the configuration; what decides the weights is fixed for the life of the folder
OUTPUT/metrics.jsonl                     one line per log interval, validation and evaluation
OUTPUT/tensorboard/                      the same for TensorBoard
OUTPUT/checkpoints/000500/policy/        a native checkpoint (averaged weights, adapters merged), ready to evaluate
OUTPUT/checkpoints/000500/state.pt       what training continues from
OUTPUT/checkpoints/000500/manifest.json  checksums of both
OUTPUT/evaluations/000500/               episodes played with that policy, if the run plays any
OUTPUT/policy/                           the last checkpoint's policy, once training is complete
"""

import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.native import STATISTICS, save_native
from rdvla.checkpoints.tensors import write_pt
from rdvla.checkpoints.tokenizer_files import read_tokenizer
from rdvla.data.stats import DatasetStatistics, load_statistics
from rdvla.errors import CheckpointError, ConfigError, TrainingError
from rdvla.files import read_json, replacing_folder, write_json
from rdvla.train.config import TrainConfig
from rdvla.train.manifest import find_damage, write_manifest

_CONTINUABLE = (
    "max_steps",
    "log_freq",
    "validate_freq",
    "validation_samples",
    "save_freq",
    "keep",
    "evaluation",
    "trackers",
    "project",
    "max_loss_ratio",
    "hang_timeout_s",
    "num_threads",
    "num_workers",
    "sharded",
)


class RunFolder:
    """One run's files. Every write is whole or absent."""

    def __init__(self, config: TrainConfig) -> None:
        """Look at the folder of `config`; nothing is written before `begin`.

        Raises:
            TrainingError: the folder belongs to a run with other settings (schedule lengths may change, and where the
                dataset lies: `require_same_data` makes sure that it is the same).
        """
        self.path = config.output
        self.keep = config.keep
        self._settings = config.model_dump(mode="json", exclude={"output"})
        self._file = self.path / "config.json"
        self._written: dict[str, Any] | None = None
        if self._file.exists():
            settings = read_json(self._file, TrainingError, "choose another output folder")
            self._written, previous = settings, _completed(settings, config)
            before, now = _fixed(previous), _fixed(self._settings)
            different = sorted(key for key in now if before.get(key) != now[key])
            if different:
                raise TrainingError(
                    f"'{self.path}' holds a run with another {', '.join(different)}; choose another output folder."
                )

    def begin(self) -> None:
        """Claim the folder for these settings, once dataset and network are known to be there.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self._written != self._settings:
            write_json(self._file, self._settings)

    def require_same_data(self, step: int, start: Checkpoint) -> None:
        """Make sure that the dataset, here or elsewhere, is the one that `step` was trained on.

        Args:
            step: of the newest checkpoint.
            start: the policy at step 0, as the dataset makes it now.

        Raises:
            TrainingError: its statistics are others, or its words are.
        """
        policy, statistics = self.directory(step) / "policy", start.statistics
        if read_tokenizer(policy).to_str() != start.tokenizer.to_str():
            raise TrainingError(
                f"'{self.path}' learned other words than the sentences of '{'+'.join(statistics)}' have now (or the "
                "checkpoint that it started from); restore them, or choose another output folder."
            )
        saved = load_statistics(policy / STATISTICS)
        if _numbers(saved) != _numbers(statistics):
            raise TrainingError(
                f"'{self.path}' holds a run on other data than '{'+'.join(statistics)}' is now (or, if a dataset is "
                "named twice, of an earlier version, which held out other episodes); correct data.root, or choose "
                "another output folder."
            )

    def save(self, step: int, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step` and drop the oldest beyond `keep`.

        Raises:
            StorageError: the disk refuses; earlier checkpoints stay.
        """
        with replacing_folder(self.directory(step), replace=True) as draft:
            save_native(draft / "policy", checkpoint)
            write_pt(draft / "state.pt", state)
            write_manifest(draft)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.directory(old))

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints at hand, ascending."""
        folder = self.path / "checkpoints"
        names = [path.name for path in folder.glob("[0-9]*") if path.is_dir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def newest_intact(self, warn: Callable[[str], None]) -> int:
        """Return the step of the newest checkpoint whose checksums are right, or 0 for a new run.

        Damaged ones are renamed to `NNNNNN.damaged`, and said.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        steps = self.steps()
        damaged: list[tuple[Path, str]] = []
        for step in reversed(steps):
            path = self.directory(step)
            damage = find_damage(path)
            if damage is None:
                for bad, reason in damaged:
                    aside = bad.with_name(f"{bad.name}.damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    bad.rename(aside)
                    warn(f"'{bad}' is damaged ({reason}); kept as '{aside.name}', training continues at step {step}.")
                return step
            damaged.append((path, damage))
        if damaged:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged)
            raise CheckpointError(
                f"every checkpoint in '{self.path}' is damaged ({reasons}); remove them to start anew."
            )
        return 0

    def load(self, step: int) -> dict[str, Any]:
        """Return the state saved at `step`.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = self.directory(step) / "state.pt"
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"'{path}' is damaged ({error}); remove its folder to continue before it.") from error
        return state

    def directory(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.path / "checkpoints" / f"{step:06d}"


def _fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that may change while a run goes on, where the dataset lies included."""
    data = settings.get("data")
    fixed = {name: value for name, value in settings.items() if name not in _CONTINUABLE}
    return fixed | {"data": data | {"root": None}} if isinstance(data, dict) else fixed


def _numbers(statistics: Mapping[str, DatasetStatistics]) -> list[Any]:
    """Return what statistics say, whatever the datasets are called; floats as far as every machine computes them."""
    return [
        [entry.num_transitions, entry.num_trajectories]
        + [
            [f"{value:.5g}" for value in vector]
            for feature in (entry.action, entry.state)
            for vector in (feature.q01, feature.q99, feature.mean, feature.std)
        ]
        for entry in statistics.values()
    ]


def _completed(settings: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return an earlier version's settings with what has been added since at its default."""
    changeable = config.model_dump(mode="json", include={"output", *_CONTINUABLE})
    try:
        whole = TrainConfig.build(changeable | settings)
    except ConfigError:
        return settings  # of another kind altogether; what differs is said
    return whole.model_dump(mode="json", exclude={"output"})
