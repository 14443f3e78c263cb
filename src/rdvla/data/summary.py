"""What a LeRobotDataset v3.0 holds, in numbers and first frames, and what in it deserves a second look."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdvla.data.checks import check_dataset, vector_keys
from rdvla.data.findings import Finding
from rdvla.data.lerobot_meta import INDEX_FEATURES, DatasetInfo, Feature
from rdvla.data.lerobot_source import LeRobotSource
from rdvla.data.stats import NormStats
from rdvla.hub import DATASET, resolve

_BINS = 32
_FRAME_SIZE = 256


@dataclass(frozen=True)
class VectorSummary:
    """One numeric feature of D entries.

    Attributes:
        key: the feature.
        names: D names.
        stats: exact statistics.
        histograms: int64 `[D, bins]`, equal bins from the smallest to the largest value of each entry.
    """

    key: str
    names: tuple[str, ...]
    stats: NormStats
    histograms: NDArray[np.int64]


@dataclass(frozen=True)
class TaskSummary:
    """One instruction, with its episodes and rows."""

    instruction: str
    episodes: int
    frames: int


@dataclass(frozen=True)
class FirstFrames:
    """How an episode begins.

    Attributes:
        episode: index of the episode.
        instruction: its task.
        images: camera key -> JPEG file of the first frame, at most 256 pixels high.
    """

    episode: int
    instruction: str
    images: dict[str, bytes]


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset at a glance.

    Attributes:
        root: its folder.
        info: `meta/info.json`.
        lengths: int64 `[E]`, rows of each episode.
        tasks: by number of episodes, descending.
        vectors: the numeric features, index columns left out.
        samples: first frames of some episodes.
        remarks: sentences about what is unusual.
    """

    root: Path
    info: DatasetInfo
    lengths: NDArray[np.int64]
    tasks: tuple[TaskSummary, ...]
    vectors: tuple[VectorSummary, ...]
    samples: tuple[FirstFrames, ...]
    remarks: tuple[str, ...]


def summarise(root: Path | str, *, num_samples: int = 0, findings: Sequence[Finding] | None = None) -> DatasetSummary:
    """Read a dataset and sum it up.

    Args:
        root: folder, or `owner/name[@revision]` on the Hugging Face hub.
        num_samples: episodes, evenly spread, whose first frames are decoded.
        findings: what `check_dataset` has said; None: it is asked.

    Raises:
        DatasetError: missing or damaged, or with values that are not finite.
    """
    folder = resolve(root, DATASET)
    info = DatasetInfo.load(folder)
    keys, _ = vector_keys(folder, info)
    source = LeRobotSource.load(folder, keys)
    if findings is None:
        findings = check_dataset(folder, decode=False)
    vectors = tuple(_vector(key, info.features[key], source.columns[key]) for key in keys)
    return DatasetSummary(
        root=folder,
        info=info,
        lengths=np.diff(source.episode_start),
        tasks=_tasks(source),
        vectors=vectors,
        samples=_samples(source, num_samples),
        remarks=(*map(str, findings), *_about_arrays(info, keys), *_about_images(source)),
    )


def _vector(key: str, feature: Feature, values_ND: NDArray[Any]) -> VectorSummary:
    values_ND = values_ND.astype(np.float32)
    stats = NormStats.compute(values_ND)
    size = values_ND.shape[1]
    names = feature.flat_names
    if len(names) != size:
        places = [",".join(map(str, place)) for place in np.ndindex(*feature.shape)]
        names = [key] if size == 1 else [f"{key}[{place}]" for place in places]
    return VectorSummary(key, tuple(names), stats, np.stack([_histogram(column) for column in values_ND.T]))


def _histogram(values: NDArray[np.float32]) -> NDArray[np.int64]:
    counts, _ = np.histogram(values.astype(np.float64), bins=_BINS)  # float32 has no bins between neighbours
    return counts.astype(np.int64)


def _tasks(source: LeRobotSource) -> tuple[TaskSummary, ...]:
    """Count rows, and the episodes in which a sentence occurs (one may have several)."""
    task_index = source.columns["task_index"][:, 0]
    episodes, frames = Counter[str](), Counter[str]()
    for episode in range(len(source.episodes)):
        found, counts = np.unique(task_index[source.rows(episode)], return_counts=True)
        for index, count in zip(found.tolist(), counts.tolist(), strict=True):
            episodes[source.tasks[index]] += 1
            frames[source.tasks[index]] += count
    return tuple(TaskSummary(task, count, frames[task]) for task, count in episodes.most_common())


def _about_arrays(info: DatasetInfo, keys: Sequence[str]) -> list[str]:
    known = {*INDEX_FEATURES, info.fresh_key, *keys, *info.cameras, *info.depth_maps}
    return [
        f"{key}: {feature.dtype} {list(feature.shape)}, not looked into"
        for key, feature in info.features.items()
        if key not in known
    ]


def _samples(source: LeRobotSource, count: int) -> tuple[FirstFrames, ...]:
    chosen = np.unique(np.linspace(0, len(source.episodes) - 1, count).round().astype(int)).tolist()
    first = np.zeros(1, dtype=np.int64)
    return tuple(
        FirstFrames(
            episode,
            source.instruction(source.rows(episode).start),
            {key: _jpeg(next(iter(source.decode(episode, key, first)))) for key in source.info.cameras},
        )
        for episode in chosen
    )


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((4 * _FRAME_SIZE, _FRAME_SIZE))
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _about_images(source: LeRobotSource) -> list[str]:
    share = float(source.fresh.mean())
    if share == 1.0:
        return []
    return [f"{share:.0%} of the rows have images of their own; the others repeat the image before."]
