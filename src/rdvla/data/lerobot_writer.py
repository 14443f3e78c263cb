"""Writes a LeRobotDataset v3.0 that is complete or absent."""

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.data import lerobot_tables as tables
from rdvla.data.images import decode_image, encode_png
from rdvla.data.lerobot_meta import (
    DATA_FILE_MB,
    DATA_PATH,
    EPISODES_PATH,
    INDEX_FEATURES,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_FILE_MB,
    VIDEO_PATH,
    DatasetInfo,
    Feature,
    index_features,
)
from rdvla.data.lerobot_stats import Histogram, column_statistics, image_histogram, image_statistics
from rdvla.data.lerobot_video import VideoSink, VideoSpan, seconds
from rdvla.errors import DatasetError, StorageError, suggest
from rdvla.files import owned_folder, write_atomically, writing

Pixels = NDArray[np.uint8]

_EPISODE_ROWS_PER_GROUP = 100
_STAGING = ".writing"


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode to be written; N rows.

    Attributes:
        task: the instruction.
        columns: feature key -> `[N, *shape]`, or `[N]` for shape (1,), in the feature's exact dtype.
        images: camera key -> the distinct images, uint8 `[H, W, 3]` or an encoded file (PNG, JPEG) each. Features of
            dtype `image` keep such a file as it is.
        image_index: int `[N]`, which image each row shows; default one image per row.
    """

    task: str
    columns: Mapping[str, NDArray[Any]]
    images: Mapping[str, Sequence[Pixels | bytes]]
    image_index: NDArray[np.int64] | None = None

    @property
    def length(self) -> int:
        """Number of rows N."""
        return len(next(iter(self.columns.values())))


@dataclass
class _Progress:
    """What has been written so far."""

    frames: int = 0
    tasks: list[str] = field(default_factory=list)
    episode_rows: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)


class LeRobotWriter:
    """Writes episodes into a dataset folder; `finalize` puts the whole dataset in place.

    Until then everything lies in a hidden folder inside it, so an interrupted recording never looks like a dataset.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: float,
        features: Mapping[str, Feature],
        robot_type: str | None = None,
        overwrite: bool = False,
        data_file_mb: float = DATA_FILE_MB,
        video_file_mb: float = VIDEO_FILE_MB,
    ) -> None:
        """Start a dataset at `root`.

        Args:
            root: folder of the dataset, created if needed.
            fps: frames per second.
            features: key -> feature, without the index columns that every dataset has.
            robot_type: name of the robot.
            overwrite: replace a dataset that is already there (when `finalize` is called, not before).
            data_file_mb: size at which a new Parquet file begins.
            video_file_mb: size at which a new video file begins.

        Raises:
            ConfigError: another process is writing a dataset there.
            DatasetError: there is a dataset or something else already, a reserved feature name, or frames that video
                cannot hold.
            StorageError: the folder cannot be created.
        """
        reserved = sorted(set(features) & set(INDEX_FEATURES))
        if reserved:
            raise DatasetError(f"features {', '.join(reserved)} are written by themselves; leave them out.")
        if not overwrite and (root / INFO_PATH).exists():
            raise DatasetError(f"there is a dataset at '{root}' already; choose another folder or delete it.")
        if not overwrite and root.is_dir() and any(path.name != _STAGING for path in root.iterdir()):
            raise DatasetError(f"'{root}' is not empty; a dataset needs a folder of its own: name one that is new.")
        self.root = root
        self._fps = fps
        self._features = dict(features)
        self._robot_type = robot_type
        self._staging = root / _STAGING
        self._data = tables.TableSink(self._staging, DATA_PATH, data_file_mb)
        self._episodes = tables.TableSink(self._staging, EPISODES_PATH, data_file_mb)
        self._videos = {
            key: VideoSink(self._staging, key, fps, feature.image_size, video_file_mb)
            for key, feature in features.items()
            if feature.dtype == "video"
        }
        self._done = _Progress()
        self._owner = ExitStack()
        busy = f"another process is writing a dataset to '{root}'; wait for it, or choose another folder."
        self._owner.enter_context(owned_folder(self._staging, busy=busy))
        for left in self._staging.iterdir():  # of a recording that was killed
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        self._encoders = ThreadPoolExecutor(max_workers=max(1, len(self._videos)))

    def add_episode(self, episode: RecordedEpisode) -> None:
        """Append one episode.

        Raises:
            DatasetError: a feature is missing, unknown, or has another dtype, shape or length.
            StorageError: the disk refuses.
        """
        self._check_keys(episode)
        pixels = {key: [_pixels(image) for image in images] for key, images in episode.images.items()}
        self._check_values(episode, pixels)
        shown = np.arange(episode.length) if episode.image_index is None else episode.image_index
        index = len(self._done.episode_rows)
        columns = self._with_indices(episode, index)
        encoding = {
            key: self._encoders.submit(sink.append, [pixels[key][i] for i in shown])
            for key, sink in self._videos.items()
        }
        statistics = self._account(episode.length, columns, pixels, shown)
        chunk, file = self._data.location
        self._data.append(self._rows(episode, columns, shown))
        spans = {key: future.result() for key, future in encoding.items()}
        self._done.episode_rows.append(
            self._episode_row(episode, index, (chunk, file), spans) | _flatten_statistics(statistics)
        )
        self._done.frames += episode.length

    def finalize(self, card: str | None = None) -> DatasetInfo:
        """Close every file, write the metadata and put the dataset in place.

        Args:
            card: text of the dataset's README.md.

        Raises:
            DatasetError: no episodes.
            StorageError: the disk refuses.
        """
        if not self._done.episode_rows:
            raise DatasetError("a dataset needs at least one episode; nothing was written.")
        self._data.close()
        for sink in self._videos.values():
            sink.close()
        self._encoders.shutdown()
        self._write_episodes()
        tables.write_tasks(self._staging / TASKS_PATH, self._done.tasks)
        self._write_json(STATS_PATH, {key: _to_lists(value) for key, value in self._statistics().items()})
        info = self._info()
        self._write_json(INFO_PATH, info.to_json(total_tasks=len(self._done.tasks)))
        if card is not None:
            write_atomically(self._staging / "README.md", card.encode())
        self._put_in_place()
        return info

    def abort(self) -> None:
        """Throw away what was written; a dataset that stood there before is untouched."""
        self._encoders.shutdown()
        sinks: list[VideoSink | tables.TableSink] = [*self._videos.values(), self._data, self._episodes]
        for sink in sinks:
            with suppress(StorageError):  # nothing of it is kept
                sink.close()
        shutil.rmtree(self._staging, ignore_errors=True)
        self._owner.close()
        with suppress(OSError):  # something else is in it
            self.root.rmdir()

    def _put_in_place(self) -> None:
        parts = ["data", "videos", "README.md", "meta"]
        with writing(self.root):
            before = self._staging / "before"
            before.mkdir()
            for part in reversed(parts):  # without meta it is no dataset, so that goes first and comes back last
                if (self.root / part).exists():
                    (self.root / part).rename(before / part)
            for part in parts:
                if (self._staging / part).exists():
                    (self._staging / part).rename(self.root / part)
            shutil.rmtree(self._staging)
        self._owner.close()

    def _check_keys(self, episode: RecordedEpisode) -> None:
        given = set(episode.columns) | set(episode.images)
        for key in sorted(given - set(self._features)):
            raise DatasetError(
                f"the episode has a feature '{key}' that was not declared.{suggest(key, self._features)}"
            )
        for key in sorted(set(self._features) - given):
            raise DatasetError(f"the episode lacks the declared feature '{key}'.")
        if not episode.task.strip():
            raise DatasetError("the episode has no task; give the instruction as a sentence.")
        if episode.length == 0:
            raise DatasetError("the episode has no rows; drop it.")

    def _check_values(self, episode: RecordedEpisode, pixels: Mapping[str, Sequence[Pixels]]) -> None:
        for key in set(self._features) - set(pixels):
            _check_column(key, episode.columns[key], self._features[key], episode.length)
        for key in pixels:
            _check_images(key, episode, pixels[key], self._features[key])

    def _with_indices(self, episode: RecordedEpisode, index: int) -> dict[str, NDArray[Any]]:
        if episode.task not in self._done.tasks:
            self._done.tasks.append(episode.task)
        rows = np.arange(episode.length)
        task = self._done.tasks.index(episode.task)
        return {
            **episode.columns,
            "timestamp": np.array([seconds(int(row), self._fps) for row in rows], np.float32),
            "frame_index": rows,
            "episode_index": np.full_like(rows, index),
            "index": self._done.frames + rows,
            "task_index": np.full_like(rows, task),
        }

    def _account(
        self,
        length: int,
        columns: Mapping[str, NDArray[Any]],
        pixels: Mapping[str, Sequence[Pixels]],
        shown: NDArray[np.int64],
    ) -> dict[str, dict[str, NDArray[Any]]]:
        statistics = {}
        for key, values in columns.items():
            matrix = values.reshape(length, -1)
            self._done.columns.setdefault(key, []).append(matrix)
            statistics[key] = column_statistics(matrix)
        for key, images in pixels.items():
            repeats = np.bincount(shown, minlength=len(images))
            total = sum((image_histogram(image) * n for image, n in zip(images, repeats, strict=True) if n), start=0)
            histogram = np.asarray(total, dtype=np.int64)
            self._done.histograms[key] = self._done.histograms.get(key, np.zeros((3, 256), np.int64)) + histogram
            statistics[key] = image_statistics(histogram, length)
        return statistics

    def _rows(self, episode: RecordedEpisode, columns: Mapping[str, NDArray[Any]], shown: NDArray[np.int64]) -> Any:
        arrays = {}
        for key, feature in self._all_features().items():
            if feature.dtype == "image":
                encoded = [_file(image) for image in episode.images[key]]
                arrays[key] = tables.image_array([encoded[i] for i in shown])
            elif feature.dtype != "video":
                arrays[key] = tables.column_array(columns[key], feature)
        return tables.table_of(arrays)

    def _episode_row(
        self, episode: RecordedEpisode, index: int, data: tuple[int, int], spans: Mapping[str, VideoSpan]
    ) -> dict[str, Any]:
        videos = {f"videos/{key}/{name}": value for key, span in spans.items() for name, value in vars(span).items()}
        return {
            "episode_index": index,
            "tasks": [episode.task],
            "length": episode.length,
            "data/chunk_index": data[0],
            "data/file_index": data[1],
            "dataset_from_index": self._done.frames,
            "dataset_to_index": self._done.frames + episode.length,
            **videos,
        }

    def _write_episodes(self) -> None:
        rows = self._done.episode_rows
        for start in range(0, len(rows), _EPISODE_ROWS_PER_GROUP):
            chunk, file = self._episodes.location
            place = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
            group = [row | place for row in rows[start : start + _EPISODE_ROWS_PER_GROUP]]
            self._episodes.append(tables.episode_table(group))
        self._episodes.close()

    def _statistics(self) -> dict[str, dict[str, NDArray[Any]]]:
        columns = {key: column_statistics(np.concatenate(parts)) for key, parts in self._done.columns.items()}
        images = {key: image_statistics(total, self._done.frames) for key, total in self._done.histograms.items()}
        return {**columns, **images}

    def _all_features(self) -> dict[str, Feature]:
        return {**self._features, **index_features()}

    def _info(self) -> DatasetInfo:
        features = {
            key: replace(feature, info=self._videos[key].info) if key in self._videos else feature
            for key, feature in self._all_features().items()
        }
        return DatasetInfo(
            fps=self._fps,
            features=features,
            total_episodes=len(self._done.episode_rows),
            total_frames=self._done.frames,
            robot_type=self._robot_type,
            video_path=VIDEO_PATH if self._videos else None,
        )

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        write_atomically(self._staging / name, (json.dumps(document, indent=4) + "\n").encode())


def _check_column(key: str, values: NDArray[Any], feature: Feature, length: int) -> None:
    shapes = [(length, *feature.shape)] + ([(length,)] if feature.shape == (1,) else [])
    if values.shape not in shapes or values.dtype != np.dtype(feature.dtype):
        raise DatasetError(
            f"feature '{key}' must be {feature.dtype} {list(shapes[0])}, found {values.dtype} {list(values.shape)}."
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DatasetError(f"feature '{key}' has a non-finite value in row {row}; drop the episode.")


def _check_images(key: str, episode: RecordedEpisode, images: Sequence[Pixels], feature: Feature) -> None:
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.shape != (*feature.image_size, 3):
            raise DatasetError(
                f"image {number} of '{key}' must be uint8 {[*feature.image_size, 3]}, "
                f"found {image.dtype} {list(image.shape)}."
            )
    shown = np.arange(episode.length) if episode.image_index is None else episode.image_index
    if len(shown) != episode.length or shown.min() < 0 or shown.max() >= len(images):
        raise DatasetError(f"'{key}' has {len(images)} images for {episode.length} rows that point to {len(shown)}.")


def _pixels(image: Pixels | bytes) -> Pixels:
    return decode_image(image) if isinstance(image, bytes) else image


def _file(image: Pixels | bytes) -> bytes:
    return image if isinstance(image, bytes) else encode_png(image)


def _to_lists(statistics: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: values.tolist() for name, values in statistics.items()}


def _flatten_statistics(statistics: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    return {f"stats/{key}/{name}": values.tolist() for key, of in statistics.items() for name, values in of.items()}
