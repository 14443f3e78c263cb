"""Reads a LeRobotDataset v3.0, ours or anyone's, as chunks of actions.

Columns live in memory; images are decoded once into a cache (`frame_cache`), so random access costs a copy.
Where a dataset says that images were rendered at some rows only (`frame_is_fresh`), only those rows start a chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from rdvla.data.conventions import about_actions, contradiction, robots_contradiction
from rdvla.data.episodes import (
    ChunkBatch,
    KeyframeBatch,
    Progress,
    Sampling,
    Timestamps,
    chunk_starts,
    chunk_windows,
    gripper_changes,
    next_keyframes,
)
from rdvla.data.findings import Finding, about_jumps, first_error
from rdvla.data.frame_cache import (
    KEEP_SIZE,
    EpisodeFrames,
    FrameTransform,
    JoinedFrames,
    MappedFrames,
    cache_key,
    join_frames,
    open_cache,
)
from rdvla.data.lerobot_meta import DatasetInfo, name_cameras
from rdvla.data.lerobot_source import LeRobotSource
from rdvla.data.stats import DatasetStatistics
from rdvla.data.video_checks import about_videos
from rdvla.errors import ConfigError, DatasetError, suggest
from rdvla.hub import DATASET, resolve
from rdvla.types import ActionConvention


@dataclass(frozen=True)
class LeRobotDataset:
    """Chunks of a LeRobotDataset v3.0. Make one with `open`; picklable, safe for many threads.

    Attributes:
        sources: the files, of every dataset.
        source: all of them as one.
        chunk_size: actions per sample, T.
        sampling: how episode ends are treated.
        state_keys: features that become `state`, one after the other.
        action_keys: features that become `actions`, one after the other.
        frames: camera name -> the cached frames, uint8 `[F, h, w, 3]`, one per fresh row.
        frame_slot: int64 `[N]`, which of the F frames a row shows; -1 for rows that are not fresh.
        episodes: the episodes of this view, ascending.
        anchors: int64 `[len]`, the row each sample starts at.
        keyframes: every row's next keyframe; None if samples bring none (`with_keyframes`).
    """

    sources: tuple[LeRobotSource, ...]
    source: LeRobotSource
    chunk_size: int
    sampling: Sampling
    state_keys: tuple[str, ...]
    action_keys: tuple[str, ...]
    frames: Mapping[str, MappedFrames | JoinedFrames]
    frame_slot: NDArray[np.int64]
    episodes: tuple[int, ...]
    anchors: NDArray[np.int64]
    keyframes: "_Keyframes | None" = None

    @classmethod
    def open(
        cls,
        root: Path | str | Sequence[Path | str],
        *,
        chunk_size: int,
        cameras: Mapping[str, str] | None = None,
        transform: FrameTransform = KEEP_SIZE,
        sampling: Sampling = "padded",
        state_key: str | Sequence[str] = "observation.state",
        action_key: str | Sequence[str] = "action",
        timestamps: Timestamps = "stored",
        cache_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Open the dataset at `root`, decoding its images into the cache unless they are there already.

        Args:
            root: folder of the dataset, or `owner/name` or `owner/name@revision` on the Hugging Face hub; of several,
                the episodes follow each other.
            chunk_size: actions per sample.
            cameras: camera name -> feature key; default all cameras, LIBERO's as `primary` and `wrist`.
            transform: brings stored frames to the policy's resolution; see `frame_cache.resize_to`.
            sampling: `padded`, `lasting`, `resting` or `published`; see `DataConfig`.
            state_key: feature that becomes `state`; of several, the vectors are joined in the order given.
            action_key: feature that becomes `actions`, or several, likewise.
            timestamps: which video frame belongs to a row: `stored` goes by its timestamp, `frame_index` by its number
                (for evenly spaced frames whose stored times are a wall clock's).
            cache_dir: where decoded frames are kept; default the user's cache folder.
            progress: called with (done, total) while frames are decoded.

        Raises:
            ConfigError: chunk_size below 1, an unknown sampling or way of timestamps; `resting` where an action entry
                is never on both sides of 0, so that 0 cannot be rest.
            DatasetError: missing, damaged, another version, without one of the named features, or several that differ.
            StorageError: no room for the cache.
        """
        chunk_starts(1, chunk_size, sampling)
        if timestamps not in get_args(Timestamps):
            raise ConfigError(f"unknown timestamps '{timestamps}'.{suggest(timestamps, get_args(Timestamps))}")
        sources, chosen_by = [], []
        for folder in [resolve(each, DATASET) for each in ([root] if isinstance(root, Path | str) else root)]:
            info = DatasetInfo.load(folder)
            chosen = _choose_cameras(info, cameras)
            state_keys = _choose_columns(info, state_key, "state")
            action_keys = _choose_columns(info, action_key, "action")
            source = LeRobotSource.load(folder, list(dict.fromkeys(state_keys + action_keys)))
            if timestamps == "frame_index":
                source = source.evenly_spaced()
            finding = first_error(about_videos(source, list(chosen.values())))
            if finding is not None:
                raise DatasetError(f"'{folder}': {finding}")
            sources.append(source)
            chosen_by.append(chosen)
            if chosen.keys() != chosen_by[0].keys():
                raise DatasetError(
                    f"'{sources[0].root}' has the cameras {', '.join(chosen_by[0])}, '{folder}' {', '.join(chosen)}; "
                    "name those that both have (data.cameras)."
                )
        source = LeRobotSource.join(sources)  # what does not fit together is refused before anything is decoded
        caches = [
            _open_cache(each, named, transform, timestamps, cache_dir, progress)
            for each, named in zip(sources, chosen_by, strict=True)
        ]
        frames = {camera: join_frames([cache[camera] for cache in caches]) for camera in chosen}
        slots = np.where(source.fresh, np.cumsum(source.fresh) - 1, -1)
        everything = cls(
            tuple(sources),
            source,
            chunk_size,
            sampling,
            state_keys,
            action_keys,
            frames,
            slots,
            (),
            np.zeros(0, dtype=np.int64),
        )
        if sampling == "resting":
            everything._require_relative()
        if not any(len(everything._anchors(episode)) for episode in range(len(source.episodes))):
            raise DatasetError(
                f"'{source.root}': no episode as long as a chunk of {chunk_size} actions, so that sampling "
                f"'{sampling}' has no sample; take 'padded'."
            )
        return everything.select(range(len(source.episodes)))

    def origin(self, episode: int) -> tuple[Path, int]:
        """Return which episode of which folder this is; a dataset that is joined twice has each of its episodes twice.

        Raises:
            DatasetError: an episode the dataset does not have.
        """
        number = self._require_episode(episode)
        for source in self.sources:
            if number < len(source.episodes):
                break
            number -= len(source.episodes)
        return source.root.resolve(), number

    @property
    def info(self) -> DatasetInfo:
        """Frame rate, features and totals; of several datasets, the first one's."""
        return self.source.info

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names."""
        return tuple(self.frames)

    @property
    def state_size(self) -> int:
        """Number of state dimensions S."""
        return sum(self.source.columns[key].shape[1] for key in self.state_keys)

    @property
    def action_size(self) -> int:
        """Number of action dimensions A."""
        return sum(self.source.columns[key].shape[1] for key in self.action_keys)

    @property
    def instructions(self) -> tuple[str, ...]:
        """The distinct instructions of this view's episodes, sorted."""
        return tuple(sorted({self.instruction(episode) for episode in self.episodes}))

    def instruction(self, episode: int) -> str:
        """Return the instruction an episode begins with."""
        return self.source.instruction(self.source.rows(self._require_episode(episode)).start)

    def select(self, episodes: Sequence[int]) -> Self:
        """Return a view of some episodes that shares all storage.

        Raises:
            DatasetError: an episode the dataset does not have.
        """
        chosen = tuple(sorted({self._require_episode(episode) for episode in episodes}))
        anchors = [self._anchors(episode) for episode in chosen]
        joined = np.concatenate(anchors) if anchors else np.zeros(0, dtype=np.int64)
        return replace(self, episodes=chosen, anchors=joined)

    def with_keyframes(self, entries: Sequence[int] | None, beyond: float) -> Self:
        """Return the view with samples that bring the state at their next keyframe (`next_keyframes`).

        The gripper is the last action entry, its commands as in LIBERO or CALVIN (-1 and 1).

        Args:
            entries: of the state, whose distance counts; None takes all.
            beyond: in the state's own units: samples at a larger Euclidean distance from their keyframe are far.

        Raises:
            ConfigError: an entry that the state does not have.
        """
        chosen = list(range(self.state_size)) if entries is None else list(entries)
        if max(chosen) >= self.state_size:
            raise ConfigError(
                f"keyframe.entries: the state has the entries 0 to {self.state_size - 1}, not {max(chosen)}."
            )
        gripper = self.source.columns[self.action_keys[-1]][:, -1]
        episodes = [self.source.rows(episode) for episode in range(len(self.source.episodes))]
        next_row = np.concatenate([next_keyframes(gripper[rows]) + rows.start for rows in episodes])
        place = self._gather(self.state_keys, np.arange(len(next_row)))[:, chosen]
        is_far = np.linalg.norm(place[next_row] - place, axis=1) > beyond
        return replace(self, keyframes=_Keyframes(next_row, is_far))

    def far_samples(self) -> Self:
        """Return the view without samples that are near their keyframe; all of them unless `with_keyframes`."""
        if self.keyframes is None:
            return self
        return replace(self, anchors=self.anchors[self.keyframes.is_far[self.anchors]])

    def with_changes(self, times: int) -> Self:
        """Return the view with each sample in whose chunk the gripper opens or closes so many times, at least once.

        The gripper is the last action entry; see `gripper_changes`. A selection from the view has its samples once.
        """
        if times == 1:
            return self
        gripper = self.source.columns[self.action_keys[-1]][:, -1]
        changes = np.zeros(len(gripper), dtype=np.int64)
        for episode in self.episodes:
            rows = self.source.rows(episode)
            changes[gripper_changes(gripper[rows]) + rows.start] = 1
        so_far = np.cumsum(changes)
        episodes = np.searchsorted(self.source.episode_start, self.anchors, side="right") - 1
        last = np.minimum(self.anchors + self.chunk_size, self.source.episode_start[episodes + 1]) - 1
        changing = self.anchors[so_far[last] > so_far[self.anchors] - changes[self.anchors]]
        return replace(self, anchors=np.concatenate([self.anchors, np.repeat(changing, times - 1)]))

    def look_through(self, convention: ActionConvention) -> list[Finding]:
        """Return what is doubtful in the numbers of all episodes, and what the last action entry is taken for.

        Raises:
            DatasetError: the recorded actions cannot be of this convention; the message says what the last entry is, or
                whose robot it is, and what fits.
        """
        for source in self.sources:
            names = source.info.features[self.state_keys[0]].names if len(self.state_keys) == 1 else None
            last = source.columns[self.action_keys[-1]][:, -1]
            if reason := contradiction(last, convention.gripper) or robots_contradiction(names, convention.gripper):
                raise DatasetError(f"'{source.root}': {reason}")
        actions = self._gather(self.action_keys, np.arange(self.source.episode_start[-1]))
        numbers = about_jumps(self.source.as_rows(), list(dict.fromkeys(self.state_keys + self.action_keys)))
        return [*numbers, *about_actions(actions, convention.gripper)]

    def statistics(self, convention: ActionConvention | None = None) -> DatasetStatistics:
        """Compute the statistics of this view's rows, actions in the training space of `convention`.

        A gripper (the last action) is masked out of normalisation, as in the published data.
        """
        convention = convention or ActionConvention()
        numbers = np.arange(self.source.episode_start[-1])
        rows = np.concatenate([numbers[self.source.rows(episode)] for episode in self.episodes])
        return DatasetStatistics.compute(
            self._gather(self.action_keys, rows),
            self._gather(self.state_keys, rows),
            convention,
            num_trajectories=len(self.episodes),
        )

    def __len__(self) -> int:
        """Number of samples in this view."""
        return len(self.anchors)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> ChunkBatch:
        """Return several samples stacked, in the order of `indices`.

        Raises:
            IndexError: an index is not below the number of samples.
        """
        rows_B = self.anchors[np.asarray(indices, dtype=np.int64)]
        episodes_B = np.searchsorted(self.source.episode_start, rows_B, side="right") - 1
        start_B, end_B = self.source.episode_start[episodes_B], self.source.episode_start[episodes_B + 1]
        frames_BT, is_pad_BT = chunk_windows(rows_B - start_B, (end_B - start_B)[:, None], self.chunk_size)
        slots_B = self.frame_slot[rows_B]
        actions_BTA = self._gather(self.action_keys, start_B[:, None] + frames_BT)
        if self.sampling == "resting":
            actions_BTA[is_pad_BT, :-1] = 0
        if self.sampling in ("lasting", "resting"):
            is_pad_BT = np.zeros_like(is_pad_BT)
        return ChunkBatch(
            images={camera: frames[slots_B] for camera, frames in self.frames.items()},
            state=self._gather(self.state_keys, rows_B),
            actions=actions_BTA,
            action_is_pad=is_pad_BT,
            instructions=tuple(self.source.instruction(row) for row in rows_B),
            episode_index=episodes_B,
            frame_index=rows_B - start_B,
            keyframe=self._keyframe(rows_B),
        )

    def _keyframe(self, rows_B: NDArray[np.int64]) -> KeyframeBatch | None:
        if self.keyframes is None:
            return None
        at_B = self.keyframes.next_row[rows_B]
        return KeyframeBatch(self._gather(self.state_keys, at_B), self.keyframes.is_far[rows_B])

    def _require_relative(self) -> None:
        actions = self._gather(self.action_keys, np.arange(self.source.episode_start[-1]))[:, :-1]
        beyond = np.flatnonzero((actions.min(axis=0) > 0) | (actions.max(axis=0) < 0))
        if len(beyond):
            entry = int(beyond[0])
            raise ConfigError(
                f"sampling 'resting' is for relative actions, and entry {entry} of '{self.source.root}' goes from "
                f"{actions[:, entry].min():.3g} to {actions[:, entry].max():.3g}, never to 0; take 'padded'."
            )

    def _gather(self, keys: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 `[*rows.shape, D]`, the columns `keys` joined."""
        columns = [self.source.columns[key][rows].astype(np.float32, copy=False) for key in keys]
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1)

    def _anchors(self, episode: int) -> NDArray[np.int64]:
        rows = self.source.rows(episode)
        starts = chunk_starts(rows.stop - rows.start, self.chunk_size, self.sampling) + rows.start
        fresh_starts: NDArray[np.int64] = starts[self.source.fresh[starts]]
        return fresh_starts

    def _require_episode(self, episode: int) -> int:
        count = len(self.source.episodes)
        if not 0 <= episode < count:
            raise DatasetError(f"there is no episode {episode}; the dataset has 0 to {count - 1}.")
        return int(episode)


@dataclass(frozen=True)
class _Keyframes:
    """Of each of N rows: int64 row of its next keyframe, and whether the robot is far from there."""

    next_row: NDArray[np.int64]
    is_far: NDArray[np.bool_]


def _choose_cameras(info: DatasetInfo, cameras: Mapping[str, str] | None) -> dict[str, str]:
    if cameras is None:
        return name_cameras(info)
    if not cameras:
        raise ConfigError("cameras is empty; name at least one, or leave it out to take all.")
    for name, key in cameras.items():
        if key in info.depth_maps:
            raise DatasetError(f"camera '{name}': '{key}' is declared as depth, not as colours; leave it out.")
        if key not in info.cameras:
            raise DatasetError(f"camera '{name}': the dataset has no images '{key}'.{suggest(key, info.cameras)}")
    return dict(cameras)


def _choose_columns(info: DatasetInfo, keys: str | Sequence[str], role: str) -> tuple[str, ...]:
    chosen = (keys,) if isinstance(keys, str) else tuple(keys)
    if not chosen:
        raise ConfigError(f"the {role} needs at least one feature of the dataset.")
    for key in chosen:
        if not info.require(key, role).is_number:
            raise DatasetError(
                f"{role} '{key}' is of dtype '{info.features[key].dtype}', which is no kind of number; name a numeric "
                "feature."
            )
    return chosen


def _open_cache(
    source: LeRobotSource,
    cameras: Mapping[str, str],
    transform: FrameTransform,
    timestamps: str,
    cache_dir: Path | None,
    progress: Progress | None,
) -> dict[str, MappedFrames]:
    jobs = [job for name, key in cameras.items() for job in _cache_jobs(source, name, key)]
    filmed = any(source.info.features[key].dtype == "video" for key in cameras.values())
    found_by = timestamps if filmed else ""
    key = cache_key(source.fingerprint(), cameras, transform, int(source.fresh.sum()), found_by)
    return open_cache(cache_dir, key, jobs, transform, progress)


def _cache_jobs(source: LeRobotSource, name: str, key: str) -> list[EpisodeFrames]:
    jobs, first = [], 0
    for episode in range(len(source.episodes)):
        frames = np.flatnonzero(source.fresh[source.rows(episode)])
        jobs.append(EpisodeFrames(name, first, len(frames), partial(source.decode, episode, key, frames)))
        first += len(frames)
    return jobs
