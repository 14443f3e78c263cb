"""Where a run's numbers go: `metrics.jsonl` always, TensorBoard, Weights & Biases or trackio on request."""

import importlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rdvla.errors import MissingExtraError
from rdvla.files import append_line, complete_lines, write_atomically, writing
from rdvla.train.config import TrainConfig


class Tracker(Protocol):
    """Something that draws curves."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""
        ...

    def finish(self) -> None:
        """Write what is still in memory."""
        ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        """Append; points beyond `from_step` are hidden.

        Raises:
            MissingExtraError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "train") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Flush the file."""
        self._writer.close()


class WebTracker:
    """Weights & Biases, or trackio, which has the same interface."""

    def __init__(self, name: str, config: TrainConfig) -> None:
        """Begin or continue the run named like its folder.

        Raises:
            MissingExtraError: the package is not installed.
        """
        try:
            self._module: Any = importlib.import_module(name)
        except ImportError:
            raise MissingExtraError(name, name) from None
        settings: dict[str, Any] = {"resume": "allow"}
        if name == "wandb":
            settings |= {"id": _run_id(config.output / "wandb_id"), "dir": str(config.output)}
        self._run = self._module.init(
            project=config.project, name=config.output.name, config=config.model_dump(mode="json"), **settings
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Send what is left."""
        self._run.finish()


def _run_id(file: Path) -> str:
    """Return the id of the run whose folder holds `file`; folders of one name are no one run."""
    if not file.exists():
        write_atomically(file, f"{uuid.uuid4().hex[:16]}\n")
    return file.read_text(encoding="utf-8").strip()


class MetricsLog:
    """Numbers over steps, as JSON lines and for trackers."""

    def __init__(self, file: Path, trackers: Sequence[Tracker], *, from_step: int) -> None:
        """Append to `file`; lines beyond `from_step` (from before an interruption) are dropped first.

        Raises:
            StorageError: the disk refuses.
        """
        self._file, self._trackers = file, trackers
        if not file.exists():
            return
        kept = [line for line in complete_lines(file) if (_step_of(line) or from_step + 1) <= from_step]
        write_atomically(file, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` at `step`; a number that is not finite is null in the file, as JSON has no other word for it.

        Raises:
            StorageError: the disk refuses.
        """
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append_line(self._file, json.dumps({"step": step, **numbers}, allow_nan=False))
        with writing(self._file.parent):
            for tracker in self._trackers:
                tracker.log(values, step)

    def has(self, step: int, prefix: str) -> bool:
        """Say whether a number of `step` whose name begins with `prefix` is in the file."""
        lines = (json.loads(line) for line in complete_lines(self._file)) if self._file.exists() else ()
        return any(line["step"] == step and any(name.startswith(prefix) for name in line) for line in lines)

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self._trackers:
            tracker.finish()


def open_log(config: TrainConfig, *, from_step: int) -> MetricsLog:
    """Open the log of a run, with the trackers that its configuration names.

    Raises:
        MissingExtraError: a tracker is not installed.
        StorageError: the disk refuses.
    """
    trackers: list[Tracker] = []
    for name in config.trackers:
        is_board = name == "tensorboard"
        trackers.append(TensorBoard(config.output, from_step=from_step) if is_board else WebTracker(name, config))
    return MetricsLog(config.output / "metrics.jsonl", trackers, from_step=from_step)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None  # a torn last line of a killed run
