"""Turns datasets of other formats into a LeRobotDataset v3.0."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from rdvla.data.episodes import Progress
from rdvla.data.lerobot_meta import DatasetInfo, Feature
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode

Storage = Literal["image", "video"]
"""`image` keeps encoded images as they are (others become PNG), bit for bit; `video` is much smaller and not exact."""


class EpisodeSource(Protocol):
    """A dataset that can be gone through episode by episode."""

    @property
    def name(self) -> str:
        """What the dataset is called."""
        ...

    @property
    def fps(self) -> float:
        """Steps per second."""
        ...

    @property
    def robot_type(self) -> str | None:
        """Name of the robot, if known."""
        ...

    @property
    def features(self) -> Mapping[str, Feature]:
        """Key -> feature, cameras with dtype `image`, without the index columns."""
        ...

    def __len__(self) -> int:
        """Number of episodes, an upper bound for a source that drops some."""
        ...

    def __iter__(self) -> Iterator[RecordedEpisode]:
        """Yield the episodes."""
        ...


def convert(
    source: EpisodeSource,
    output: Path,
    *,
    storage: Storage = "image",
    progress: Progress | None = None,
) -> DatasetInfo:
    """Write `source` as a LeRobotDataset v3.0; it appears at `output` whole, or not at all.

    Args:
        source: what to convert.
        output: folder of the new dataset.
        storage: how images are stored.
        progress: called with (episodes done, episodes of the source).

    Raises:
        DatasetError: the source is damaged, or there is a dataset at `output` already.
        StorageError: the disk refuses.
    """
    features = {
        key: replace(feature, dtype=storage) if feature.is_camera else feature
        for key, feature in source.features.items()
    }
    writer = LeRobotWriter(output, fps=source.fps, features=features, robot_type=source.robot_type)
    try:
        for number, episode in enumerate(source, start=1):
            writer.add_episode(episode)
            if progress is not None:
                progress(number, len(source))
        return writer.finalize(
            f"# {source.name}\n\nConverted by `rdvla dataset convert`; images stored as {storage}.\n"
        )
    except BaseException:
        writer.abort()
        raise
