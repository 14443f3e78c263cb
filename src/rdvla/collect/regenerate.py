"""Repeats the original LIBERO demonstrations in the simulator, as the published data was made from them.

Each demonstration starts from its recorded state; its actions are executed without the no-ops, and what the cameras
show is recorded at any resolution. A replay that does not end with the task solved is dropped.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rdvla.data.lerobot_meta import STANDARD_CAMERAS, Feature, camera_feature
from rdvla.data.lerobot_writer import RecordedEpisode
from rdvla.data.libero_hdf5 import LiberoDemonstrations, Trace, moving_steps, task_name
from rdvla.envs.base import Env, TaskSpec
from rdvla.envs.episode import turns
from rdvla.envs.libero.suites import list_suites, list_tasks
from rdvla.errors import DatasetError, suggest


class RestorableEnv(Env, Protocol):
    """An environment that can start from a recorded state (`LiberoEnv`)."""

    def restore(self, state: NDArray[np.float64], *, episode: int = 0) -> None:
        """Start from the simulator state `[1 + nq + nv]`, as episode number `episode`, and let the scene settle."""
        ...


class Regeneration:
    """An `EpisodeSource`: demonstrations repeated in the simulator.

    Attributes:
        name: the source's name.
        fps: steps per second.
        robot_type: name of the robot.
        features: key -> feature, cameras at the new size.
        dropped: replays so far that did not solve their task.
    """

    def __init__(
        self,
        demonstrations: LiberoDemonstrations,
        make_env: Callable[[str, int], RestorableEnv],
        *,
        camera_size: int = 256,
    ) -> None:
        """Repeat `demonstrations` in environments made by `make_env(suite, task_id)` with that camera size in pixels.

        Raises:
            DatasetError: a file belongs to no task of the installed LIBERO.
        """
        self._demonstrations = demonstrations
        self._make_env = make_env
        self._tasks = [(path, _find_task(path)) for path in demonstrations.files]
        camera = camera_feature(camera_size, camera_size, "image")
        self.name, self.fps, self.robot_type = demonstrations.name, demonstrations.fps, demonstrations.robot_type
        self.features: Mapping[str, Feature] = {
            key: replace(camera, dtype=feature.dtype) if feature.is_camera else feature
            for key, feature in demonstrations.features.items()
        }
        self.dropped = 0

    def __len__(self) -> int:
        """Number of demonstrations, dropped ones included."""
        return len(self._demonstrations)

    def __iter__(self) -> Iterator[RecordedEpisode]:
        """Yield the replays that solve their task.

        Raises:
            DatasetError: a file is damaged.
            ConfigError: a demonstration does not fit the installed LIBERO's model of the task.
            SimulatorError: the simulator broke.
        """
        for path, task in self._tasks:
            with closing(self._make_env(task.suite, task.task_id)) as env:
                for number, trace in enumerate(self._demonstrations.traces(path)):
                    episode = replay(env, trace, number)
                    if episode is None:
                        self.dropped += 1
                    else:
                        yield episode


def replay(env: RestorableEnv, trace: Trace, number: int) -> RecordedEpisode | None:
    """Repeat the demonstration with this `number` of its task; None if the task is not solved at its end."""
    env.restore(trace.start, episode=number)
    actions = trace.actions[moving_steps(trace.actions)]
    states: list[NDArray[np.float32]] = []
    images: dict[str, list[NDArray[np.uint8]]] = {key: [] for key in STANDARD_CAMERAS.values()}
    for action, turn in zip(actions, turns(env, exactly=len(actions)), strict=True):
        observation = env.observe()
        states.append(observation.state)
        for camera, key in STANDARD_CAMERAS.items():
            images[key].append(observation.images[camera])
        turn.execute(action)
    if not len(actions) or not turn.solved:
        return None
    return RecordedEpisode(env.task.instruction, {"observation.state": np.stack(states), "action": actions}, images)


def _find_task(path: Path) -> TaskSpec:
    tasks = {task.name: task for suite in reversed(list_suites()) for task in list_tasks(suite)}
    name = task_name(path)
    if name not in tasks:
        raise DatasetError(f"'{path}' belongs to no task of the installed LIBERO.{suggest(name, tasks)}")
    return tasks[name]
