"""The run folder: what a training run leaves behind and continues from.

OUTPUT/config.json                  the configuration, fixed for the life of the folder
OUTPUT/metrics.jsonl                one line per log interval and per validation
OUTPUT/tensorboard/                 the same for TensorBoard
OUTPUT/checkpoints/000500/policy/   a native checkpoint (averaged weights), ready to evaluate
OUTPUT/checkpoints/000500/state.pt  what training continues from
OUTPUT/policy/                      the last checkpoint's policy, once training is complete
"""

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rdvla.checkpoints.checkpoint import Checkpoint
from rdvla.checkpoints.native import save_native
from rdvla.checkpoints.storage import atomic_directory
from rdvla.errors import CheckpointError, MissingExtraError, StorageError, TrainingError
from rdvla.train.config import TrainConfig

_CONTINUABLE = ("max_steps", "log_freq", "validate_freq", "validation_samples", "save_freq", "keep", "num_threads")


class RunFolder:
    """One run's files. Every write is whole or absent."""

    def __init__(self, config: TrainConfig, *, write: bool = True) -> None:
        """Open the folder of `config`; with `write`, create it if needed.

        Raises:
            TrainingError: the folder belongs to a run with other settings (schedule lengths may change).
            StorageError: the folder cannot be written.
        """
        self.path = config.output
        self.keep = config.keep
        settings = config.model_dump(mode="json", exclude={"output", *_CONTINUABLE})
        file = self.path / "config.json"
        if file.exists():
            previous = _read_settings(file)
            different = sorted(key for key in settings if previous.get(key) != settings[key])
            if different:
                raise TrainingError(
                    f"'{self.path}' holds a run with another {', '.join(different)}; choose another output folder."
                )
            return
        if not write:
            return
        draft = file.with_suffix(".part")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            draft.replace(file)
        except OSError as error:
            raise StorageError(f"cannot write '{self.path}': {error}.") from error

    def save(self, step: int, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step` and drop the oldest beyond `keep`."""
        with atomic_directory(self._directory(step), replace=True) as draft:
            save_native(draft / "policy", checkpoint)
            try:
                torch.save(dict(state), draft / "state.pt")
            except RuntimeError as error:  # torch's writer says so when the disk is full
                raise OSError(str(error)) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._directory(old))

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints at hand, ascending."""
        folder = self.path / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []

    def load_latest(self) -> dict[str, Any] | None:
        """Return the newest checkpoint's state, or None for a new run.

        Raises:
            CheckpointError: the state is damaged.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self._directory(steps[-1]) / "state.pt"
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"'{path}' is damaged ({error}); remove its folder to continue before it.") from error
        return state

    def _directory(self, step: int) -> Path:
        return self.path / "checkpoints" / f"{step:06d}"


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"'{file}' is damaged ({error}); choose another output folder.") from None
    return settings


class MetricsLog:
    """Numbers over steps, as JSON lines and for TensorBoard."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        """Append to `folder`; lines beyond `from_step` (from before an interruption) are dropped first."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "train") from None
        self._file = folder / "metrics.jsonl"
        if self._file.exists():
            lines = self._file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) is not None and (_step_of(line) or 0) <= from_step]
            self._file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` at `step`.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise StorageError(f"cannot write '{self._file}': {error}.") from error

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self._writer.close()


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return None  # a torn last line of a killed run
