"""Reads RLDS datasets (TensorFlow Datasets on disk) without TensorFlow.

A version folder holds `dataset_info.json` (which files), `features.json` (what a record holds) and TFRecord files with
one episode per record, every feature of every step joined to one list under a name such as `steps/observation/state`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rdvla.data.images import decode_image
from rdvla.data.lerobot_meta import ACTION_KEY, STANDARD_CAMERAS, STATE_KEY, Feature, demonstration_features
from rdvla.data.lerobot_writer import RecordedEpisode
from rdvla.data.tfrecord import Values, parse_example, read_records
from rdvla.embodiment import CALVIN, LIBERO, Embodiment
from rdvla.errors import ConfigError, DatasetError, suggest
from rdvla.files import read_json

_INFO, _FEATURES = "dataset_info.json", "features.json"
_OBSERVATION = "steps/observation/"
_ACTION, _STATE, _LANGUAGE = "steps/action", "steps/observation/state", "steps/language_instruction"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class Leaf(NamedTuple):
    """One feature of `features.json`.

    Attributes:
        kind: `image`, `tensor` or `text`.
        shape: shape of one value; a step's, for features of steps.
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FeatureMap:
    """What the features of a known dataset mean.

    Attributes:
        fps: steps per second, which RLDS does not record.
        robot_type: name of the robot.
        cameras: image of an observation -> key in the LeRobotDataset.
        state_names: names of the state's entries.
        action_names: names of the action's entries.
        state_entries: the stored entries that make up the state; None takes all.
    """

    fps: float
    robot_type: str | None
    cameras: Mapping[str, str]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    state_entries: tuple[int, ...] | None = None

    @classmethod
    def of(cls, robot: Embodiment, cameras: Mapping[str, str], state_entries: tuple[int, ...] | None = None) -> Self:
        """Return the features of a known robot's datasets."""
        names = (robot.state_names, robot.action_names)
        return cls(robot.control_hz, robot.robot_type, cameras, *names, state_entries)

    def fits(self, state: tuple[int, ...], action: tuple[int, ...]) -> bool:
        """Return whether stored states and actions of these shapes can be the robot's; undeclared ones may be."""
        entries = self.state_entries
        enough = not state or (state[-1] > max(entries) if entries is not None else state[-1] == len(self.state_names))
        return enough and (not action or action[-1] == len(self.action_names))


_PRIMARY, _WRIST = STANDARD_CAMERAS["primary"], STANDARD_CAMERAS["wrist"]
FEATURE_MAPS = {
    "libero": FeatureMap.of(LIBERO, {"image": _PRIMARY, "wrist_image": _WRIST}),
    "calvin": FeatureMap.of(CALVIN, {"rgb_static": _PRIMARY, "rgb_gripper": _WRIST}, (*range(7), 14)),
}
"""Start of a dataset's name -> its features. Of CALVIN's 15 state entries, those that the published policies see."""


@dataclass(frozen=True)
class RldsDataset:
    """One split of an RLDS dataset, an `EpisodeSource`. Make one with `open`.

    Attributes:
        name: the dataset's name.
        fps: steps per second.
        robot_type: name of the robot, if known.
        features: key -> feature of the LeRobotDataset that it becomes.
        shards: the TFRecord files.
        shard_lengths: episodes in each of them.
        cameras: key of a camera -> its feature in a record.
        state_entries: the stored entries that make up the state; None takes all.
    """

    name: str
    fps: float
    robot_type: str | None
    features: Mapping[str, Feature]
    shards: tuple[Path, ...]
    shard_lengths: tuple[int, ...]
    cameras: Mapping[str, str]
    state_entries: tuple[int, ...] | None

    @classmethod
    def open(cls, root: Path, *, split: str = "train", fps: float | None = None) -> Self:
        """Open an RLDS dataset.

        Args:
            root: a version folder (`libero_spatial_no_noops/1.0.0`), or the folder around a single one.
            split: which split to read.
            fps: steps per second; needed where the name does not tell (LIBERO 20, CALVIN 30).

        Raises:
            ConfigError: no such split, or fps is needed.
            DatasetError: not an RLDS dataset, or one without actions, states, cameras or instructions.
        """
        folder = version_folder(root)
        if folder is None:
            raise DatasetError(f"'{root}' is no RLDS dataset: it has no {_INFO} beside {_FEATURES}.")
        fix = "copy the dataset again"
        info, described = (read_json(folder / name, DatasetError, fix) for name in (_INFO, _FEATURES))
        leaves = dict(_leaves(described, ""))
        features = _feature_map(str(info.get("name")), leaves, fps)
        shards, lengths = _shards(folder, info, split)
        for key in (_ACTION, _STATE, _LANGUAGE, *(_OBSERVATION + camera for camera in features.cameras)):
            if key not in leaves:
                raise DatasetError(f"'{folder / _FEATURES}' has no '{key}'.{suggest(key, leaves)}")
        if not features.cameras:
            raise DatasetError(f"'{folder / _FEATURES}' has no camera: no RGB image under {_OBSERVATION}.")
        cameras = {key: _OBSERVATION + camera for camera, key in features.cameras.items()}
        shapes = {key: leaves[name].shape for key, name in cameras.items()}
        if any(min(shape[:2], default=0) < 1 for shape in shapes.values()):  # declared as (None, None, 3)
            shapes = _first_sizes(shards[0], cameras)
        return cls(
            name=str(info["name"]),
            fps=fps or features.fps,
            robot_type=features.robot_type,
            features=demonstration_features(shapes, features.state_names, features.action_names),
            shards=shards,
            shard_lengths=lengths,
            cameras=cameras,
            state_entries=features.state_entries,
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return sum(self.shard_lengths)

    def __iter__(self) -> Iterator[RecordedEpisode]:
        """Yield the episodes in the order of the files; images as the encoded files of the dataset.

        Raises:
            DatasetError: a file is missing, damaged or holds something else than `features.json` says.
        """
        for path, expected in zip(self.shards, self.shard_lengths, strict=True):
            found = 0
            for record in read_records(path):
                where = f"'{path}', record {found}"
                yield self._episode(parse_example(record, where), where)
                found += 1
            if found != expected:
                raise DatasetError(f"'{path}' holds {found} episodes, {_INFO} says {expected}; copy it again.")

    def _episode(self, values: Mapping[str, Values], where: str) -> RecordedEpisode:
        action, state = _vectors(values, _ACTION, where), _vectors(values, _STATE, where)
        size = len(self.features[ACTION_KEY].names)
        if len(action) % size or len(state) % (len(action) // size):
            raise DatasetError(
                f"{where} has {len(action)} numbers '{_ACTION}' and {len(state)} '{_STATE}', which are no steps of "
                f"{size} action entries."
            )
        action = action.reshape(-1, size)
        state = state.reshape(len(action), -1)
        try:
            sentences = {sentence.decode() for sentence in _files(values, _LANGUAGE, where)}
        except UnicodeDecodeError as error:
            raise DatasetError(f"{where}: '{_LANGUAGE}' is not UTF-8 ({error}).") from None
        if len(sentences) != 1:
            raise DatasetError(f"{where} has {len(sentences)} instructions; an episode needs exactly one.")
        images = {key: _files(values, name, where) for key, name in self.cameras.items()}
        for key, files in images.items():
            if len(files) != len(action):
                raise DatasetError(f"{where} has {len(files)} images '{self.cameras[key]}' for {len(action)} actions.")
        entries = slice(None) if self.state_entries is None else list(self.state_entries)
        columns = {STATE_KEY: np.ascontiguousarray(state[:, entries]), ACTION_KEY: action}
        return RecordedEpisode(sentences.pop(), columns, images)


def version_folder(root: Path) -> Path | None:
    """Return the folder with the metadata: `root` or the newest version below it; None if there is neither."""
    inside = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    candidates = [root, *sorted(inside, key=_version, reverse=True)]
    return next((path for path in candidates if (path / _INFO).is_file() and (path / _FEATURES).is_file()), None)


def _version(path: Path) -> tuple[int, ...]:
    parts = path.name.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _leaves(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Leaf]]:
    """Yield path -> leaf of a node of `features.json`; a sequence adds nothing to the path."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{path}/{name}".lstrip("/"))
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], path)
    else:
        for kind in ("image", "tensor", "text"):
            if kind in node:
                dimensions = node[kind].get("shape", {}).get("dimensions", [])
                yield path, Leaf(kind, tuple(int(size or 0) for size in dimensions))


def _feature_map(name: str, leaves: Mapping[str, Leaf], fps: float | None) -> FeatureMap:
    state, action = (leaves[key].shape if key in leaves else () for key in (_STATE, _ACTION))
    reason = ""
    for prefix, features in FEATURE_MAPS.items():
        if name.startswith(prefix):
            if features.fits(state, action):
                return features
            reason = f" Its name says {prefix}, but its state {list(state)} and actions {list(action)} are not those."
    if fps is None:
        raise ConfigError(f"RLDS does not record how many steps of '{name}' make a second; say so with --fps.{reason}")
    cameras = [
        key.removeprefix(_OBSERVATION)
        for key, leaf in leaves.items()
        if key.startswith(_OBSERVATION) and leaf.kind == "image" and leaf.shape[2:] in ((3,), ())
    ]
    return FeatureMap(
        fps,
        None,
        {camera: f"observation.images.{camera}" for camera in cameras},
        tuple(f"state_{number}" for number in range(int(np.prod(state)))),
        tuple(f"action_{number}" for number in range(int(np.prod(action)))),
    )


def _first_sizes(path: Path, cameras: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Return the sizes of the first record's images: key -> (height, width, 3).

    Raises:
        DatasetError: there is no record, or no readable image in it.
    """
    record = next(iter(read_records(path)), None)
    if record is None:
        raise DatasetError(f"'{path}' holds no episode, so the size of its images is unknown.")
    values = parse_example(record, f"'{path}', record 0")
    return {key: decode_image(_files(values, name, f"'{path}', record 0")[0]).shape for key, name in cameras.items()}


def _shards(folder: Path, info: Mapping[str, Any], split: str) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    splits = {entry["name"]: entry for entry in info.get("splits", [])}
    if split not in splits:
        raise ConfigError(f"'{folder}' has no split '{split}'.{suggest(split, splits)}")
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "tfrecord":
        raise DatasetError(f"'{folder}' stores {file_format} files; only tfrecord can be read.")
    lengths = tuple(int(length) for length in splits[split].get("shardLengths", []))
    template = splits[split].get("filepathTemplate") or _TEMPLATE
    names = {"DATASET": info["name"], "SPLIT": split, "FILEFORMAT": file_format, "NUM_SHARDS": f"{len(lengths):05d}"}
    paths = []
    for number in range(len(lengths)):
        place = {"SHARD_INDEX": f"{number:05d}", "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}"}
        paths.append(folder / template.format_map({**names, **place}))
    return tuple(paths), lengths


def _vectors(values: Mapping[str, Values], key: str, where: str) -> NDArray[np.float32]:
    found = values.get(key)
    if not isinstance(found, np.ndarray) or not len(found):
        raise DatasetError(f"{where} has no numbers '{key}'.{suggest(key, values)}")
    return found.astype(np.float32, copy=False)


def _files(values: Mapping[str, Values], key: str, where: str) -> list[bytes]:
    found = values.get(key)
    if not isinstance(found, list) or not found:
        raise DatasetError(f"{where} has no '{key}'.{suggest(key, values)}")
    return found
