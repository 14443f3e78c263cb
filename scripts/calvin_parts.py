"""Ask by which part of CALVIN's table a policy knows where slider and switch are.

RDVLA_CALVIN_RENDERER=tiny python scripts/calvin_parts.py CHECKPOINT SCENE OTHER paints SCENE's table as OTHER, or moves
drawer, button or LED to where OTHER has it, and prints where along the table (x, m) the hand is after 40 steps towards
slider and switch, at depth 8: mean and range of six drawn starts. A part that the policy does not use leaves that
unchanged. Take the renderer that the policy was trained with.
"""

import contextlib
import sys

import numpy as np

from rdvla.envs.calvin.assets import load_scene
from rdvla.envs.calvin.bullet import choose_renderer
from rdvla.envs.calvin.chains import ROBOT_OBS, random_start
from rdvla.envs.calvin.env import CAMERAS
from rdvla.envs.calvin.sentences import SENTENCES
from rdvla.envs.calvin.simulation import Simulation
from rdvla.envs.calvin.varied import DOORS, WOOD, Look, moved, places, texture
from rdvla.policies import load_policy
from rdvla.policy import Ask, Policy
from rdvla.stops import StopRule
from rdvla.types import Observation

TASKS = ("move_slider_left", "turn_on_lightbulb")
MOVED = {"nothing": (), "drawer": ("base__drawer",), "button": ("base__button",), "led": ("base__led",)}
STARTS, DECISIONS, EXECUTED, DEPTH = 6, 5, 8, 8


def reach(policy: Policy, simulation: Simulation, sentence: str) -> float:
    """Let the policy act; return where the hand is then."""
    for number in range(DECISIONS):
        state = np.array(simulation.robot_obs())[[*range(7), -1]].astype(np.float32)
        images = {name: simulation.draw(camera) for name, camera in CAMERAS.items()}
        ask = Ask(StopRule.fixed(DEPTH), seed=number)
        for action in policy.infer(Observation(images, state, sentence), ask).actions[:EXECUTED]:
            simulation.step(action)
    return float(simulation.robot_obs()[0])


def main(checkpoint: str, name: str, other: str) -> None:
    """Print a line for each change."""
    policy, scene = load_policy(checkpoint), load_scene(name)
    there = places(load_scene(other))
    changes = {f"{part} moved": ({joint: there[joint] for joint in joints}, {}) for part, joints in MOVED.items()}
    data = scene.data.parent
    changes[f"painted as {other}"] = (
        {},
        {link: Look(texture(other, data, link), (1, 1, 1)) for link in (*WOOD, *DOORS)},
    )
    for change, (joints, looks) in changes.items():
        ends: dict[str, list[float]] = {task: [] for task in TASKS}
        for task in TASKS:
            for seed in range(STARTS):
                with moved(scene, joints) as config:
                    _, start = random_start(np.random.default_rng(seed), config, task)
                    simulation = Simulation(config, renderer=choose_renderer())
                with contextlib.closing(simulation):
                    simulation.paint(looks)
                    simulation.reset(ROBOT_OBS, start)
                    ends[task].append(reach(policy, simulation, SENTENCES[task][0]))
        found = (f"{task} {np.mean(x):+.2f} ({min(x):+.2f} to {max(x):+.2f})" for task, x in ends.items())
        print(f"{change:14s}", *found, sep="  ", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
