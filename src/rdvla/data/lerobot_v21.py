"""Reads LeRobotDataset v2.0 and v2.1, one Parquet file and one video per episode, to be converted to v3.0."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from rdvla.data import lerobot_tables as tables
from rdvla.data.lerobot_meta import INDEX_FEATURES, INFO_PATH, Feature, camera_feature
from rdvla.data.lerobot_video import decode_frames
from rdvla.data.lerobot_writer import RecordedEpisode
from rdvla.errors import DatasetError
from rdvla.files import read_json, refuse_pointer

VERSIONS = ("v2.0", "v2.1")
_FIX = "copy the dataset again"


def is_v21(root: Path) -> bool:
    """Return whether `root` says that it is a LeRobotDataset of these versions."""
    path = root / INFO_PATH
    return path.is_file() and read_json(path, DatasetError, _FIX).get("codebase_version") in VERSIONS


_PLACES = ("episode_index", "frame_index")
"""Columns that say where a row belongs; not every dataset has them."""


@dataclass(frozen=True)
class LeRobotV21:
    """A dataset of v2.0 or v2.1, an `EpisodeSource`. Make one with `open`.

    Attributes:
        root: its folder.
        name: the folder's name.
        fps: frames per second.
        robot_type: name of the robot, if known.
        features: key -> feature of the new dataset; every camera has dtype `image`.
        videos: the cameras that are stored as video.
        paths: templates `data_path` and `video_path`.
        chunks_size: episodes per folder.
        lengths: frames of every episode.
        tasks: task index -> sentence.
    """

    root: Path
    name: str
    fps: float
    robot_type: str | None
    features: Mapping[str, Feature]
    videos: frozenset[str]
    paths: tuple[str, str]
    chunks_size: int
    lengths: tuple[int, ...]
    tasks: Mapping[int, str]

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open the dataset at `root`.

        Raises:
            DatasetError: damaged or incomplete, or with a feature that is neither a camera nor a row of numbers.
        """
        info = read_json(root / INFO_PATH, DatasetError, _FIX)
        try:
            stored = {
                key: Feature.from_json(entry) for key, entry in info["features"].items() if key not in INDEX_FEATURES
            }
            features = {key: _new_feature(key, feature) for key, feature in stored.items() if not feature.is_depth}
            rows = sorted(_lines(root / "meta/episodes.jsonl"), key=lambda row: int(row["episode_index"]))
            numbers, promised = [int(row["episode_index"]) for row in rows], int(info.get("total_episodes", len(rows)))
            source = cls(
                root=root,
                name=root.name,
                fps=float(info["fps"]),
                robot_type=info.get("robot_type"),
                features=features,
                videos=frozenset(key for key in features if stored[key].dtype == "video"),
                paths=(str(info["data_path"]), str(info.get("video_path") or "")),
                chunks_size=int(info["chunks_size"]),
                lengths=tuple(int(row["length"]) for row in rows),
                tasks={int(row["task_index"]): row["task"] for row in _lines(root / "meta/tasks.jsonl")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"'{root / 'meta'}' is incomplete or malformed ({error!r}); copy it again.") from None
        if numbers != list(range(promised)):
            raise DatasetError(
                f"'{root}': meta/info.json promises the episodes 0 to {promised - 1}, meta/episodes.jsonl has "
                f"{len(numbers)}, and not these; copy the dataset again."
            )
        if not source.fps > 0 or source.chunks_size < 1:
            raise DatasetError(f"'{root / INFO_PATH}': fps and chunks_size must be above 0.")
        return source

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[RecordedEpisode]:
        """Yield the episodes; images in tables as the files they are, videos decoded.

        Raises:
            DatasetError: a file is missing or damaged, or an episode has several sentences, another length or rows out
                of order.
        """
        for number, length in enumerate(self.lengths):
            yield self._episode(number, length)

    def _episode(self, number: int, length: int) -> RecordedEpisode:
        path = self._path(self.paths[0], number)
        numeric = [key for key, feature in self.features.items() if not feature.is_camera]
        pictures = [key for key, feature in self.features.items() if feature.is_camera and key not in self.videos]
        places = [key for key in _PLACES if key in tables.column_names(path)]
        table = tables.read_table(path, [*numeric, *pictures, *("timestamp", *places, "task_index")])
        if len(table) != length:
            raise DatasetError(
                f"'{path}' has {len(table)} rows, meta/episodes.jsonl says {length}; copy the dataset again."
            )
        for key in places:
            expected = [number] * length if key == "episode_index" else list(range(length))
            if (there := table[key].to_pylist()) != expected:
                row = next(at for at in range(length) if there[at] != expected[at])
                raise DatasetError(
                    f"'{path}' has {key} {there[row]} in row {row}, where {expected[row]} belongs; copy the dataset "
                    "again."
                )
        scalar = Feature("float64", (1,))
        stamps = tables.numeric_column(table, "timestamp", scalar, path)[:, 0]
        found = sorted(set(table["task_index"].to_pylist()))
        if len(found) != 1 or not isinstance(self.tasks.get(found[0]), str):
            raise DatasetError(f"'{path}' has the tasks {found}; an episode needs exactly one of meta/tasks.jsonl.")
        columns = {key: tables.numeric_column(table, key, self.features[key], path) for key in numeric}
        images: dict[str, list[Any]] = {key: self._files(table[key].to_pylist(), key, path) for key in pictures}
        for key in self.videos:
            video = self._path(self.paths[1], number, video_key=key)
            images[key] = list(decode_frames(video, stamps.tolist(), self.fps))
        return RecordedEpisode(self.tasks[found[0]], columns, images)

    def _path(self, template: str, number: int, **names: str) -> Path:
        return self.root / template.format(episode_chunk=number // self.chunks_size, episode_index=number, **names)

    def _files(self, cells: list[Any], key: str, path: Path) -> list[bytes]:
        files = []
        for frame, cell in enumerate(cells):
            try:
                files.append(cell["bytes"] if cell["bytes"] is not None else (self.root / cell["path"]).read_bytes())
            except (TypeError, KeyError, OSError) as error:
                reason = "the cell is empty" if cell is None else error
                raise DatasetError(f"'{path}': the image at frame {frame}, {key} cannot be used: {reason}.") from None
        return files


def _new_feature(key: str, feature: Feature) -> Feature:
    if feature.is_camera:
        return camera_feature(*feature.image_size, "image")
    numeric = feature.dtype == "bool" or feature.dtype.startswith(("float", "int", "uint"))
    if not numeric or len(feature.shape) != 1 or not np.prod(feature.shape):
        raise DatasetError(
            f"feature '{key}' is {feature.dtype} {list(feature.shape)}; only cameras and rows of numbers can be "
            "converted: remove it from meta/info.json."
        )
    dtype = "float32" if feature.dtype == "float16" else feature.dtype  # as they are read
    return Feature(dtype, feature.shape, feature.names)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        refuse_pointer(path, DatasetError)
        documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"'{path}' cannot be read ({error}); {_FIX}.") from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise DatasetError(f"'{path}' holds no mappings; {_FIX}.")
    return documents
