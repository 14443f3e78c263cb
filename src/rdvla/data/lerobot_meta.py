"""LeRobotDataset v3.0: names, paths and `meta/info.json`, shared by the reader and the writer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

from rdvla.errors import DatasetError, suggest
from rdvla.files import read_json

VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNKS_SIZE = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
MAX_FPS = 1000
"""Frames per second: more are a slip of the hand, or nanoseconds."""

FRESH_KEY = "frame_is_fresh"
"""Boolean feature: the images of this row were rendered at this row, not repeated from an earlier one. The name neither
begins with `observation.`, or LeRobot would feed it to policies as a state, nor holds `image`, or LeRobot's editing
commands would take it for a picture."""

OLD_FRESH_KEY = "images_fresh"
"""What earlier versions called it; still read."""

INDEX_FEATURES: dict[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}

STANDARD_CAMERAS = {"primary": "observation.images.image", "wrist": "observation.images.image2"}
"""Our camera names and the keys LIBERO datasets store them under."""

TEXT = ("string", "language")
"""Dtypes of sentences."""

NUMBERS = {"bool", "int", "float", "double"} | {
    f"{kind}{bits}"
    for kind, sizes in (("int", (8, 16, 32, 64)), ("uint", (8, 16, 32, 64)), ("float", (16, 32, 64)))
    for bits in sizes
}
"""Dtypes of numbers."""

STATE_KEY, ACTION_KEY = "observation.state", "action"

_CHANNELS = (1, 3, 4)
_CONVERT = "`rdvla dataset convert` takes v2.0 and v2.1"


@dataclass(frozen=True)
class Feature:
    """One column or video of a dataset.

    Attributes:
        dtype: `float32`, `int64`, `bool`, ..., or `image` / `video`.
        shape: shape of one row, e.g. `(7,)` or `(H, W, 3)`, as declared.
        names: names of the entries or axes, if declared.
        info: details of a video, if declared.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_camera(self) -> bool:
        """Whether rows are images."""
        return self.dtype in ("image", "video")

    @property
    def is_number(self) -> bool:
        """Whether rows are real numbers or truth values."""
        return self.dtype in NUMBERS

    @property
    def is_depth(self) -> bool:
        """Whether an image or video is declared as depth (`is_depth_map`, as LeRobot writes it)."""
        return any(bool(self.info.get(name)) for name in ("is_depth_map", "video.is_depth_map"))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, whichever way round the channels are declared."""
        if self._channels_first:
            return self.shape[1], self.shape[2]
        return self.shape[0], self.shape[1]

    @property
    def _channels_first(self) -> bool:
        first, last = self.shape[0] in _CHANNELS, self.shape[2] in _CHANNELS
        if first != last:  # the sizes say it, whatever the names are
            return first
        names = [str(name).lower() for name in self.names] if isinstance(self.names, list | tuple) else []
        return bool(names) and names[0].startswith("c")

    @property
    def flat_names(self) -> list[str]:
        """Names of the entries, in order; none if they are not declared."""
        return _flat(self.names)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read the entry of `info.json`.

        Raises:
            ValueError: it is malformed, or a camera whose channels are in another order than RGB.
        """
        if not isinstance(entry, dict):
            raise ValueError(f"it is {entry!r}, not a mapping")
        dtype, shape, names, info = (entry.get(name) for name in ("dtype", "shape", "names", "info"))
        if not isinstance(dtype, str):
            raise ValueError(f"dtype is {dtype!r}")
        if not isinstance(shape, list) or not all(size is None or type(size) is int for size in shape):
            raise ValueError(f"shape is {shape!r}, not a list of whole numbers")
        if info is not None and not isinstance(info, dict):
            raise ValueError(f"info is {info!r}, not a mapping")
        feature = cls(dtype, tuple(0 if size is None else size for size in shape), names, info or {})
        if not feature.is_camera or feature.is_depth:
            return feature
        if len(shape) != 3:
            raise ValueError(f"shape is {shape}, and a picture has height, width and channels")
        words = " ".join(re.findall("[a-z]+", " ".join(_flat(names)).lower()))
        if re.search(r"\b(bgr|b g r|blue green red)\b", words):
            raise ValueError("its channels are said to be blue, green, red; record it as RGB, or say rgb if it is")
        return feature

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `info.json`."""
        entry: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape), "names": self.names}
        return {**entry, "info": dict(self.info)} if self.info else entry


def _flat(names: Any) -> list[str]:
    """Return names in order; LeRobot nests them in a mapping such as {"motors": [...]} at times."""
    if isinstance(names, dict):
        return [name for value in names.values() for name in _flat(value)]
    if isinstance(names, list | tuple):
        return [name for value in names for name in (_flat(value) if isinstance(value, list | tuple) else [str(value)])]
    return []


def vector_feature(names: list[str]) -> Feature:
    """Return a float32 vector feature with one name per entry."""
    return Feature("float32", (len(names),), names)


def camera_feature(height: int, width: int, dtype: Literal["image", "video"]) -> Feature:
    """Return an RGB camera feature, channels last."""
    return Feature(dtype, (height, width, 3), ["height", "width", "channels"])


def camera_key(camera: str) -> str:
    """Return the feature key of one of our cameras: `primary` and `wrist` under LIBERO's usual keys."""
    return STANDARD_CAMERAS.get(camera, f"observation.images.{camera}")


def demonstration_features(
    image_sizes: Mapping[str, Sequence[int]],
    state_names: Sequence[str],
    action_names: Sequence[str],
    dtype: Literal["image", "video"] = "image",
) -> dict[str, Feature]:
    """Return what every demonstration has: cameras, `observation.state` and `action`.

    Args:
        image_sizes: feature key of a camera -> height and width in pixels; what follows them is ignored.
        state_names: of the state's entries.
        action_names: of the action's entries.
        dtype: how the images are stored.
    """
    cameras = {key: camera_feature(int(size[0]), int(size[1]), dtype) for key, size in image_sizes.items()}
    vectors = {STATE_KEY: vector_feature(list(state_names)), ACTION_KEY: vector_feature(list(action_names))}
    return {**cameras, **vectors}


@dataclass(frozen=True)
class DatasetInfo:
    """The parts of `meta/info.json` that reading and writing need.

    Attributes:
        fps: frames per second; a fraction such as 29.97 is accepted.
        features: key -> feature, index columns included.
        total_episodes: number of episodes.
        total_frames: number of rows.
        robot_type: name of the robot, if declared.
        data_path: template of the data files.
        video_path: template of the video files, None if there are none.
    """

    fps: float
    features: Mapping[str, Feature]
    total_episodes: int
    total_frames: int
    robot_type: str | None = None
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH

    @property
    def cameras(self) -> list[str]:
        """Keys of the image and video features that show colours, in declared order."""
        return [key for key, feature in self.features.items() if feature.is_camera and not feature.is_depth]

    @property
    def fresh_key(self) -> str | None:
        """The feature that says which rows have images of their own, if there is one."""
        return next((key for key in (FRESH_KEY, OLD_FRESH_KEY) if key in self.features), None)

    @property
    def depth_maps(self) -> list[str]:
        """Keys of the image and video features that are declared as depth; no policy here can use them."""
        return [key for key, feature in self.features.items() if feature.is_camera and feature.is_depth]

    @classmethod
    def load(cls, root: Path) -> Self:
        """Read `root/meta/info.json`.

        Raises:
            DatasetError: no dataset there, another version, or a damaged file.
        """
        path = root / INFO_PATH
        if not root.is_dir():
            raise DatasetError(f"there is no dataset folder at '{root}'.")
        unfinished = (
            f"'{root}' is not a LeRobotDataset, or its recording was not finished (repeat the same `rdvla collect` "
            "command to finish it)"
        )
        document = read_json(path, DatasetError, "copy the dataset again", missing=unfinished)
        version = document.get("codebase_version")
        if version != VERSION:
            raise DatasetError(f"'{path}' has codebase_version {version!r}, this reads {VERSION}; {_CONVERT}.")
        try:
            return cls._parse(document)
        except ValueError as error:
            raise DatasetError(f"'{path}' is incomplete or malformed: {error}; repair it, or copy it again.") from None

    @classmethod
    def _parse(cls, document: Mapping[str, Any]) -> Self:
        entries, robot = document.get("features"), document.get("robot_type")
        fps: Any = document.get("fps")
        if not isinstance(entries, dict):
            raise ValueError(f"features is {entries!r}, not a mapping")
        features = {}
        for key, entry in entries.items():
            try:
                features[key] = Feature.from_json(entry)
            except ValueError as error:
                raise ValueError(f"feature '{key}': {error}") from None
        if type(fps) not in (int, float) or not 0 < fps < MAX_FPS:
            raise ValueError(f"fps is {fps!r}, not a number above 0 and below {MAX_FPS}")
        totals: dict[str, Any] = {name: document.get(name) for name in ("total_episodes", "total_frames")}
        for name, total in totals.items():
            if type(total) is not int or total < 0:
                raise ValueError(f"{name} is {total!r}, not a whole number")
        data_path: Any = document.get("data_path")
        video_path = document.get("video_path")
        _require_template("data_path", data_path)
        if video_path is not None:
            _require_template("video_path", video_path, video_key="")
        robot_type = None if robot is None else str(robot)
        return cls(float(fps), features, **totals, robot_type=robot_type, data_path=data_path, video_path=video_path)

    def to_json(self, *, total_tasks: int) -> dict[str, Any]:
        """Return the content of `meta/info.json`, every field that v3.0 defines."""
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": self.total_episodes,
            "total_frames": self.total_frames,
            "total_tasks": total_tasks,
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "splits": {"train": f"0:{self.total_episodes}"},
            "data_path": self.data_path,
            "video_path": self.video_path,
            "features": {key: feature.to_json() for key, feature in self.features.items()},
        }

    def require(self, key: str, role: str) -> Feature:
        """Return the feature `key`.

        Raises:
            DatasetError: there is none; the message suggests the nearest.
        """
        if key not in self.features:
            raise DatasetError(f"the dataset has no {role} '{key}'.{suggest(key, self.features)}")
        return self.features[key]


def _require_template(name: str, template: Any, **names: str) -> None:
    """Make sure that file names can be made from a template.

    Raises:
        ValueError: they cannot.
    """
    try:
        template.format(chunk_index=0, file_index=0, **names)
    except (AttributeError, KeyError, IndexError, ValueError, TypeError):
        known = ", ".join(["chunk_index", "file_index", *names])
        raise ValueError(f"{name} is {template!r}, not a template of {known}") from None


def frame_rate(fps: float) -> Fraction:
    """Return `fps` as the fraction that video containers use; 29.97 becomes 2997/100."""
    return Fraction(fps).limit_denominator(1001)


def index_features() -> dict[str, Feature]:
    """Return the five columns every dataset has."""
    return {key: Feature(dtype, (1,)) for key, dtype in INDEX_FEATURES.items()}


def name_cameras(info: DatasetInfo) -> dict[str, str]:
    """Return camera name -> feature key: `primary` and `wrist` for LIBERO's keys, else the key's last part.

    Raises:
        DatasetError: two cameras would have the same name.
    """
    standard = {key: name for name, key in STANDARD_CAMERAS.items()}
    names: dict[str, str] = {}
    for key in info.cameras:
        name = standard.get(key, key.removeprefix("observation.images."))
        if name in names:
            raise DatasetError(
                f"'{names[name]}' and '{key}' would both be the camera '{name}'; name them (data.cameras)."
            )
        names[name] = key
    return names
