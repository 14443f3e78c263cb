"""Reads the original LIBERO demonstrations: one HDF5 file per task, one group per demonstration.

Stored images are upside down and mirrored; they come out upright. `moving_steps` is the published filter of no-ops.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rdvla.data.lerobot_meta import ACTION_KEY, STANDARD_CAMERAS, STATE_KEY, Feature, demonstration_features
from rdvla.data.lerobot_writer import RecordedEpisode
from rdvla.embodiment import LIBERO
from rdvla.errors import DatasetError, MissingExtraError

try:
    import h5py
except ImportError as error:
    raise MissingExtraError("h5py", "hdf5") from error

SUFFIX = "_demo.hdf5"
_CAMERAS = {STANDARD_CAMERAS["primary"]: "agentview_rgb", STANDARD_CAMERAS["wrist"]: "eye_in_hand_rgb"}
_NO_OP = 1e-4


def moving_steps(actions: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Return which steps of actions `[N, A]` are kept: bool `[N]`.

    A step is dropped if the arm hardly moves (all but the last entry have a norm below 1e-4) and the gripper's command
    (the last entry) is that of the last step kept.
    """
    kept = np.zeros(len(actions), dtype=bool)
    gripper = None
    for step, action in enumerate(actions):
        still = np.linalg.norm(action[:-1]) < _NO_OP
        if not (still and (gripper is None or action[-1] == gripper)):
            kept[step] = True
            gripper = action[-1]
    return kept


class Trace(NamedTuple):
    """What it takes to repeat a demonstration in the simulator.

    Attributes:
        start: float64 `[1 + nq + nv]`, the simulator's state before the first action (time, positions, velocities).
        actions: float32 `[N, 7]`, no-ops included.
    """

    start: NDArray[np.float64]
    actions: NDArray[np.float32]


@dataclass(frozen=True)
class LiberoDemonstrations:
    """The HDF5 files of one suite, an `EpisodeSource` of what they hold, no-ops left out. Make one with `open`.

    Attributes:
        name: the folder's name.
        files: one per task.
        features: key -> feature of the LeRobotDataset that they become.
    """

    name: str
    files: tuple[Path, ...]
    features: Mapping[str, Feature]
    fps: float = LIBERO.control_hz
    robot_type: str | None = LIBERO.robot_type

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open the folder `root` with its `*_demo.hdf5` files, or a single such file.

        Raises:
            DatasetError: there are none, or the first is damaged.
        """
        files = (root,) if root.is_file() else tuple(sorted(root.glob(f"*{SUFFIX}")))
        if not files:
            raise DatasetError(f"'{root}' has no files *{SUFFIX}; name the folder of one LIBERO suite.")
        with _opened(files[0]) as file:
            first = _demonstrations(file)[0]
            shapes = {key: _entry(first, f"obs/{name}").shape[1:3] for key, name in _CAMERAS.items()}
        features = demonstration_features(shapes, LIBERO.state_names, LIBERO.action_names)
        return cls(root.name.removesuffix(SUFFIX), files, features)

    def __len__(self) -> int:
        """Number of demonstrations."""
        total = 0
        for path in self.files:
            with _opened(path) as file:
                total += len(_demonstrations(file))
        return total

    def __iter__(self) -> Iterator[RecordedEpisode]:
        """Yield the demonstrations as recorded, without their no-ops.

        Raises:
            DatasetError: a file is damaged or lacks something.
        """
        for path in self.files:
            with _opened(path) as file:
                task = _instruction(file)
                for group in _demonstrations(file):
                    yield _recorded(group, task)

    def traces(self, path: Path) -> Iterator[Trace]:
        """Yield what it takes to repeat the demonstrations of one file.

        Raises:
            DatasetError: the file is damaged or lacks something.
        """
        with _opened(path) as file:
            for group in _demonstrations(file):
                start, actions = _entry(group, "states")[0], _entry(group, "actions")
                yield Trace(np.asarray(start, np.float64), np.asarray(actions, np.float32))


def task_name(path: Path) -> str:
    """Return the benchmark's name of the task whose demonstrations are in `path`."""
    return path.name.removesuffix(SUFFIX)


def _recorded(group: Any, task: str) -> RecordedEpisode:
    actions = np.asarray(_entry(group, "actions"), np.float32)
    stored = {name: _entry(group, f"obs/{name}") for name in ("ee_states", "gripper_states", *_CAMERAS.values())}
    for name, values in stored.items():
        if len(values) != len(actions):
            raise DatasetError(
                f"'{group.file.filename}': demonstration '{group.name}' has {len(values)} rows of 'obs/{name}' for "
                f"{len(actions)} actions; copy the file again, or remove the demonstration."
            )
    kept = np.flatnonzero(moving_steps(actions))
    if not len(kept):
        raise DatasetError(f"'{group.file.filename}': demonstration '{group.name}' has no-ops only; remove it.")
    state = np.concatenate([stored["ee_states"], stored["gripper_states"]], axis=1).astype(np.float32)
    images = {
        key: [np.ascontiguousarray(stored[name][step][::-1, ::-1]) for step in kept] for key, name in _CAMERAS.items()
    }
    return RecordedEpisode(task, {STATE_KEY: state[kept], ACTION_KEY: actions[kept]}, images)


def _entry(group: Any, name: str) -> Any:
    """Return what a demonstration calls `name`, rows first.

    Raises:
        DatasetError: it has none.
    """
    found = group.get(name)
    if not isinstance(found, h5py.Dataset) or not found.shape or not len(found):
        raise DatasetError(
            f"'{group.file.filename}': demonstration '{group.name}' has no rows of '{name}'; copy the file again, or "
            "remove the demonstration."
        )
    return found


def _demonstrations(file: Any) -> list[Any]:
    """Return the groups demo_0, demo_1, ... in the order of their numbers."""
    data = file.get("data")
    names = [name for name in data or () if name.rpartition("_")[2].isdecimal()]
    if not names:
        raise DatasetError(f"'{file.filename}' holds no LIBERO demonstrations (data/demo_0, ...); remove it.")
    return [data[name] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]


def _instruction(file: Any) -> str:
    try:
        language = json.loads(file["data"].attrs["problem_info"])["language_instruction"]
        return (language if isinstance(language, str) else " ".join(language)).strip('" ')
    except (KeyError, TypeError, ValueError):
        raise DatasetError(
            f"'{file.filename}': 'data' has no attribute problem_info with a language_instruction, so the task has no "
            "sentence; copy the file again."
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(f"'{path}' is missing; copy the dataset again, all of its files.") from None
    except (OSError, KeyError, ValueError) as error:
        raise DatasetError(f"'{path}' is damaged or holds no LIBERO demonstrations ({error}).") from None
