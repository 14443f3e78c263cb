"""Replays recordings of the published CALVIN simulator; imports little, since every recording has its own process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.calvin.assets import load_scene
from rdvla.envs.calvin.bullet import Renderer
from rdvla.envs.calvin.simulation import Simulation
from rdvla.envs.calvin.tasks import solved
from rdvla.errors import ConfigError

_CAMERAS = ("static", "gripper")


@dataclass(frozen=True)
class Replay:
    """What came of a recording's actions; T actions, T + 1 moments.

    Attributes:
        robot_obs: float64 `[T + 1, 15]`.
        scene_obs: float64 `[T + 1, 24]`.
        solved: the tasks solved since the last start, of every moment.
        pictures: as in the recording: `rgb_CAMERA_STEP` -> uint8 `[H, W, 3]`.
        drawn_by: the renderer, and its driver if it has one.
    """

    robot_obs: NDArray[np.float64]
    scene_obs: NDArray[np.float64]
    solved: list[list[str]]
    pictures: dict[str, NDArray[np.uint8]]
    drawn_by: str


def replay_recording(
    arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any], renderer: Renderer, draw: list[str]
) -> Replay:
    """Execute a recording's actions.

    Args:
        arrays: `init_robot_obs`, `init_scene_obs` and `actions`.
        facts: `scene`, and `start_info_taken_at`: the moments from which on tasks are counted anew.
        renderer: how to draw.
        draw: the pictures wanted, `rgb_CAMERA_STEP`.

    Raises:
        ConfigError: tasks are not counted from the first moment on.
    """
    if 0 not in facts["start_info_taken_at"]:
        raise ConfigError(f"start_info_taken_at = {facts['start_info_taken_at']}: it has to begin with 0.")
    simulation = Simulation(load_scene(facts["scene"]), renderer=renderer)
    simulation.reset(arrays["init_robot_obs"], arrays["init_scene_obs"])
    robot, scene, tasks = [], [], []
    pictures: dict[str, NDArray[np.uint8]] = {}
    for moment in range(len(arrays["actions"]) + 1):
        if moment:
            simulation.step(arrays["actions"][moment - 1])
        now = simulation.info()
        if moment in facts["start_info_taken_at"]:
            start = now
        robot.append(simulation.robot_obs())
        scene.append(simulation.scene_obs())
        tasks.append(sorted(solved(start, now)))
        wanted = {f"rgb_{camera}_{moment}": camera for camera in _CAMERAS}
        pictures |= {key: simulation.draw(camera) for key, camera in wanted.items() if key in draw}
    drawn_by = ", ".join([renderer, *simulation.drawn_by.values()])
    simulation.close()
    return Replay(np.array(robot), np.array(scene), tasks, pictures, drawn_by)


def ask_oracle(document: Mapping[str, Any]) -> list[list[str]]:
    """Return which tasks are solved between the two states of every case."""
    config = load_scene(document["scene"])
    answers = []
    for case in document["cases"]:
        simulation = Simulation(config, renderer="tiny")
        simulation.reset(document["robot_obs"], case["start"])
        start = simulation.info()
        simulation.reset(document["robot_obs"], case["end"])
        answers.append(sorted(solved(start, simulation.info())))
        simulation.close()
    return answers
