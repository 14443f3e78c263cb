"""Loads what a LeRobotDataset v3.0 holds: small columns into memory, images on demand."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rdvla.data import lerobot_tables as tables
from rdvla.data.findings import Rows, about_episodes, about_numbers, about_sentences, first_error
from rdvla.data.images import decode_image
from rdvla.data.lerobot_meta import FRESH_KEY, INDEX_FEATURES, TASKS_PATH, DatasetInfo
from rdvla.data.lerobot_video import decode_frames
from rdvla.errors import DatasetError
from rdvla.files import files_below

_EPISODE_COLUMNS = ("episode_index", "length", "data/chunk_index", "data/file_index")
_HASHED_BYTES = 64 * 1024


@dataclass(frozen=True)
class LeRobotSource:
    """A dataset on disk; N rows in all, E episodes, rows sorted by episode and frame.

    Attributes:
        root: the dataset's folder.
        info: `meta/info.json`.
        episodes: one mapping per episode, from `meta/episodes`.
        columns: feature key -> `[N, D]`.
        episode_start: int64 `[E + 1]`, first row of each episode, and N.
        tasks: task index -> instruction.
    """

    root: Path
    info: DatasetInfo
    episodes: Sequence[dict[str, Any]]
    columns: dict[str, NDArray[Any]]
    episode_start: NDArray[np.int64]
    tasks: dict[int, str]

    @classmethod
    def load(cls, root: Path, keys: Sequence[str]) -> Self:
        """Read the metadata and the columns `keys` of the dataset at `root`, and look through them.

        Raises:
            DatasetError: not a v3.0 dataset, damaged, incomplete, or without one of the columns; a value that is not
                finite, a task without a sentence or an episode without a frame, with feature, episode and frame.
        """
        source = cls.read(root, keys)
        rows = source.as_rows()
        finding = first_error([*about_episodes(rows), *about_sentences(rows), *about_numbers(rows, keys)])
        if finding is not None:
            raise DatasetError(f"'{root}': {finding} (`rdvla dataset check` lists everything.)")
        return source

    @classmethod
    def read(cls, root: Path, keys: Sequence[str]) -> Self:
        """Read like `load`, whatever the values are: for those who look through them themselves.

        Raises:
            DatasetError: not a v3.0 dataset, damaged, incomplete, or without one of the columns.
        """
        info = DatasetInfo.load(root)
        episodes = _load_episodes(root, info)
        fresh = [info.fresh_key] if info.fresh_key is not None else []
        columns = _load_columns(root, info, episodes, [*INDEX_FEATURES, *keys, *fresh])
        for key in fresh:
            columns[FRESH_KEY] = columns.pop(key)
        starts = np.concatenate([[0], np.cumsum([row["length"] for row in episodes])]).astype(np.int64)
        source = cls(root, info, episodes, columns, starts, tables.read_tasks(root / TASKS_PATH))
        source._check()
        return source

    @classmethod
    def join(cls, sources: Sequence[Self]) -> Self:
        """Return the episodes of `sources` (at least one), one after the other; their images are to be decoded before.

        Raises:
            DatasetError: they differ in frame rate, or in the size or the names of a column.
        """
        first = sources[0]
        if len(sources) == 1:
            return first
        keys = sorted(first.columns.keys() - {FRESH_KEY})
        for other in sources[1:]:
            if other.info.fps != first.info.fps:
                raise DatasetError(f"'{first.root}' has {first.info.fps} fps, '{other.root}' {other.info.fps}.")
            for key in keys:
                one, two = first.columns[key].shape[1], other.columns[key].shape[1]
                if one != two:
                    raise DatasetError(f"'{key}' has {one} entries in '{first.root}', {two} in '{other.root}'.")
                names, others = (source.info.features[key].flat_names for source in (first, other))
                if names != others and sorted(names) == sorted(others):
                    raise DatasetError(
                        f"'{key}' has the entries {', '.join(names)} in '{first.root}', {', '.join(others)} in "
                        f"'{other.root}': bring them into one order, or correct meta/info.json."
                    )
        tasks = dict(enumerate(dict.fromkeys(task for source in sources for task in source.tasks.values())))
        number = {task: index for index, task in tasks.items()}
        columns = {key: np.concatenate([source.columns[key] for source in sources]) for key in keys}
        columns[FRESH_KEY] = np.concatenate([source.fresh for source in sources])[:, None]
        columns["task_index"] = np.concatenate(
            [[[number[source.tasks[int(index)]]] for index in source.columns["task_index"][:, 0]] for source in sources]
        )
        episodes = [row for source in sources for row in source.episodes]
        starts = np.concatenate([[0], np.cumsum([row["length"] for row in episodes])]).astype(np.int64)
        return replace(first, episodes=episodes, columns=columns, episode_start=starts, tasks=tasks)

    @cached_property
    def fresh(self) -> NDArray[np.bool_]:
        """Bool `[N]`: rows whose images were taken at that row, not repeated; all of them if the dataset is silent."""
        if FRESH_KEY in self.columns:
            return self.columns[FRESH_KEY][:, 0].astype(bool)
        return np.ones(int(self.episode_start[-1]), dtype=bool)

    @staticmethod
    def column_names(root: Path, info: DatasetInfo) -> set[str]:
        """Return the columns that every data file of the dataset has.

        Raises:
            DatasetError: a file is missing or damaged.
        """
        paths = dict.fromkeys(_data_path(root, info, row) for row in _load_episodes(root, info))
        return set.intersection(*(set(tables.column_names(path)) for path in paths)) if paths else set()

    def evenly_spaced(self) -> Self:
        """Return the dataset with timestamps made from frame numbers: `frame_index / fps`."""
        stamps = (self.columns["frame_index"] / self.info.fps).astype(np.float64)
        return replace(self, columns={**self.columns, "timestamp": stamps})

    def as_rows(self) -> Rows:
        """Return what `rdvla.data.findings` looks through."""
        numbers = [int(row["episode_index"]) for row in self.episodes]
        return Rows(self.columns, self.episode_start, numbers, self.tasks, self.info.fps)

    def rows(self, episode: int) -> slice:
        """Return the rows of an episode."""
        return slice(int(self.episode_start[episode]), int(self.episode_start[episode + 1]))

    def instruction(self, row: int) -> str:
        """Return the instruction of a row."""
        return self.tasks[int(self.columns["task_index"][row, 0])]

    def decode(self, episode: int, key: str, frames: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield images of camera `key`, uint8 `[H, W, 3]`, at the ascending `frames` of an episode.

        Raises:
            DatasetError: a file is missing or damaged.
        """
        if self.info.features[key].dtype == "video":
            return self._decode_video(episode, key, frames)
        return self._decode_cells(episode, key, frames)

    def fingerprint(self) -> str:
        """Return a hash that changes when the dataset's content does, wherever it is stored.

        Covers the metadata in full, and of every data and video file the size and both ends (which hold the format's
        own tables of content), behind links to other folders as well.
        """
        digest = hashlib.sha256()
        folders = [self.root / name for name in ("meta", "data", "videos", "images")]
        files = sorted(path for folder in folders for path in files_below(folder))
        for path in (file for file in files if not _is_hidden(file, self.root)):
            name = path.relative_to(self.root).as_posix()
            size = path.stat().st_size
            digest.update(f"{name}:{size};".encode())
            with path.open("rb") as stream:
                digest.update(stream.read(_HASHED_BYTES))
                stream.seek(max(size - _HASHED_BYTES, 0))
                digest.update(stream.read())
        return digest.hexdigest()

    def video_of(self, episode: int, key: str) -> tuple[Path, float]:
        """Return the file with an episode's video `key`, and the second at which the episode begins in it.

        Raises:
            DatasetError: `meta/episodes` or `meta/info.json` does not say it.
        """
        if self.info.video_path is None:
            raise DatasetError(f"'{self.root}': meta/info.json has a video '{key}' but no video_path.")
        found = []
        for name in ("chunk_index", "file_index", "from_timestamp"):
            column = f"videos/{key}/{name}"
            value = self.episodes[episode].get(column)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                number = self.episodes[episode]["episode_index"]
                raise DatasetError(
                    f"'{self.root / 'meta/episodes'}': {column} is {value!r} in episode {number}; copy the dataset "
                    "again."
                )
            found.append(value)
        chunk, file, start = found
        template = self.info.video_path
        return self.root / template.format(video_key=key, chunk_index=int(chunk), file_index=int(file)), float(start)

    def _decode_video(self, episode: int, key: str, frames: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        path, start = self.video_of(episode, key)
        timestamps = self.columns["timestamp"][self.rows(episode), 0].astype(np.float64)[frames]
        return decode_frames(path, (start + timestamps).tolist(), self.info.fps)

    def _decode_cells(self, episode: int, key: str, frames: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        path = _data_path(self.root, self.info, self.episodes[episode])
        index = self.episodes[episode]["episode_index"]
        table = tables.read_episode(path, [key, "frame_index"], index)
        cells = dict(zip(table["frame_index"].to_pylist(), table[key], strict=True))
        for frame in frames.tolist():
            if frame not in cells:
                raise DatasetError(f"'{path}' lacks frame {frame} of episode {index}; copy the dataset again.")
            yield self._decode_cell(cells[frame].as_py(), path, f"episode {index}, frame {frame}, {key}")

    def _decode_cell(self, cell: Any, path: Path, where: str) -> NDArray[np.uint8]:
        try:
            return decode_image(self._content(cell))
        except (OSError, DatasetError) as error:
            raise DatasetError(f"'{path}': the image at {where} cannot be used: {error}.") from None

    def _content(self, cell: Any) -> bytes:
        """Return the encoded file in a cell of an `image` feature.

        Raises:
            DatasetError: there is none.
            OSError: it cannot be read.
        """
        if cell is None:
            raise DatasetError("the cell is empty")
        if not isinstance(cell, dict) or not {"bytes", "path"} <= cell.keys():
            raise DatasetError(f"the cell holds a {type(cell).__name__}, not an encoded file (bytes and path)")
        if isinstance(cell["bytes"], bytes):
            return cell["bytes"]
        if cell["path"] is None:
            raise DatasetError("the cell has neither bytes nor a path")
        return (self.root / str(cell["path"])).read_bytes()

    def _check(self) -> None:
        episode_index, frame_index = (self.columns[key][:, 0] for key in ("episode_index", "frame_index"))
        for number, row in enumerate(self.episodes):
            rows = self.rows(number)
            whole = np.array_equal(frame_index[rows], np.arange(row["length"]))
            if not whole or not (episode_index[rows] == row["episode_index"]).all():
                raise DatasetError(
                    f"'{self.root}': episode {row['episode_index']} should have {row['length']} frames, but its data "
                    "file has others; meta/episodes and data do not belong together: copy the dataset again."
                )
        unknown = sorted(set(self.columns["task_index"][:, 0].tolist()) - set(self.tasks))
        if unknown:
            raise DatasetError(
                f"'{self.root / TASKS_PATH}' has no task {unknown[0]}, which the data uses; copy it again."
            )


def _load_episodes(root: Path, info: DatasetInfo) -> list[dict[str, Any]]:
    files = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"'{root / 'meta/episodes'}' has no episode tables; copy the dataset again.")
    episodes: list[dict[str, Any]] = []
    for path in files:
        names = [name for name in tables.column_names(path) if not name.startswith("stats/")]
        names += [name for name in _EPISODE_COLUMNS if name not in names]
        rows = tables.read_table(path, names).to_pylist()
        for row, name in product(rows, _EPISODE_COLUMNS):
            if type(row[name]) is not int or row[name] < 0:
                raise DatasetError(
                    f"'{path}': {name} is {row[name]!r} in an episode, not a whole number; copy the dataset again."
                )
        episodes += rows
    episodes.sort(key=lambda row: int(row["episode_index"]))
    if len(episodes) != info.total_episodes:
        raise DatasetError(
            f"'{root}': meta/info.json says {info.total_episodes} episodes, meta/episodes has {len(episodes)}; "
            "copy the dataset again."
        )
    return episodes


def _load_columns(
    root: Path, info: DatasetInfo, episodes: Sequence[dict[str, Any]], keys: Sequence[str]
) -> dict[str, NDArray[Any]]:
    paths = dict.fromkeys(_data_path(root, info, row) for row in episodes)
    parts: dict[str, list[NDArray[Any]]] = {key: [] for key in keys}
    for path in paths:
        table = tables.read_table(path, keys)
        for key in keys:
            parts[key].append(tables.numeric_column(table, key, info.require(key, "column"), path))
    columns = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    order = np.lexsort((columns["frame_index"][:, 0], columns["episode_index"][:, 0]))
    expected = sum(int(row["length"]) for row in episodes)
    if len(order) != expected:
        raise DatasetError(
            f"'{root}': meta/episodes counts {expected} frames, the data files hold {len(order)}; copy it again."
        )
    if expected != info.total_frames:
        raise DatasetError(
            f"'{root}': meta/info.json says {info.total_frames} frames, there are {expected}; copy it again."
        )
    return {key: values[order] for key, values in columns.items()}


def _data_path(root: Path, info: DatasetInfo, row: dict[str, Any]) -> Path:
    return root / info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
