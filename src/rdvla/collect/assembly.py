"""Turns staged demonstrations into a LeRobotDataset v3.0 and says what is in it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rdvla.collect.recording import Attempt, Demonstration, Part
from rdvla.collect.staging import Staging
from rdvla.data.lerobot_meta import (
    ACTION_KEY,
    FRESH_KEY,
    STATE_KEY,
    Feature,
    camera_key,
    demonstration_features,
)
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.embodiment import Embodiment

Storage = Literal["video", "image"]


def assemble(
    staging: Staging,
    output: Path,
    attempts: Sequence[Attempt],
    *,
    robot: Embodiment,
    storage: Storage,
    write_card: Callable[[Sequence[dict[str, Any]]], str],
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Write the demonstrations of `attempts`, in that order, as the dataset at `output`.

    Args:
        staging: where the demonstrations are.
        output: folder of the dataset; one that is there is replaced once the new one is complete.
        attempts: which demonstrations, at least one.
        robot: who is shown in them.
        storage: `video` (small, close to the original) or `image` (PNG, exact).
        write_card: makes the dataset's README.md from the returned list.
        progress: called with (done, total).

    Returns:
        Per episode (one solved stage): its index, where it came from, its length and how long the attempt took.

    Raises:
        DatasetError: a staged file is damaged.
        StorageError: the disk refuses.
    """
    first = staging.load(attempts[0])
    features = _features(first, robot, storage)
    writer = LeRobotWriter(output, fps=robot.control_hz, features=features, robot_type=robot.robot_type, overwrite=True)
    episodes: list[dict[str, Any]] = []
    try:
        for index, attempt in enumerate(attempts):
            demonstration = staging.load(attempt)
            for part, episode in _episodes(demonstration):
                writer.add_episode(episode)
                episodes.append(_provenance(len(episodes), demonstration, part, episode))
            progress(index + 1, len(attempts))
        writer.finalize(write_card(episodes))
    except BaseException:
        writer.abort()
        raise
    return episodes


def _features(demonstration: Demonstration, robot: Embodiment, storage: Storage) -> dict[str, Feature]:
    sizes = {camera_key(name): size for name, size in demonstration.image_sizes().items()}
    features = demonstration_features(sizes, robot.state_names, robot.action_names, storage)
    return {**features, FRESH_KEY: Feature("bool", (1,))}


def _episodes(demonstration: Demonstration) -> Iterator[tuple[Part, RecordedEpisode]]:
    """Yield an episode for every part; each begins with a picture of its own."""
    columns = {STATE_KEY: demonstration.states, ACTION_KEY: demonstration.actions, FRESH_KEY: demonstration.fresh}
    images = demonstration.decoded_images()
    begin = 0
    for part in demonstration.parts:
        rows = slice(begin, begin + part.length)
        begin = rows.stop
        shown = demonstration.image_index[rows]
        yield (
            part,
            RecordedEpisode(
                task=part.instruction,
                columns={key: values[rows] for key, values in columns.items()},
                images={camera_key(name): files[shown[0] : shown[-1] + 1] for name, files in images.items()},
                image_index=shown - shown[0],
            ),
        )


def _provenance(index: int, demonstration: Demonstration, part: Part, episode: RecordedEpisode) -> dict[str, Any]:
    attempt = demonstration.attempt
    placement, noise = attempt.seeds()
    return {
        "episode_index": index,
        "suite": attempt.suite,
        "task_id": attempt.task_id,
        "attempt": attempt.number,
        "placement_seed": placement,
        "noise_seed": noise,
        "stage": part.name,
        "instruction": part.instruction,
        "length": part.length,
        "images": int(episode.columns[FRESH_KEY].sum()),
        "seconds": round(demonstration.seconds, 3),
        "versions": dict(demonstration.versions),
    }
