"""Draw scenes of CALVIN and say where the blocks on the table lie: no demonstrations, for `keyframe.alone` only.

python scripts/calvin_places.py SUITE SEED SCENES OUTPUT writes a LeRobotDataset with an episode of two rows for every
block on the table: the arm somewhere, its gripper open; then the same state but for the hand's position, which is where
it would hold the block. So it is for `keyframe.entries: [0, 1, 2]` only.
"""

import sys
from pathlib import Path

import numpy as np

from rdvla.data.lerobot_meta import FRESH_KEY, STANDARD_CAMERAS, Feature, demonstration_features
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.embodiment import CALVIN
from rdvla.envs import Seed, make_env
from rdvla.envs.calvin.chains import random_start
from rdvla.envs.calvin.env import CalvinEnv
from rdvla.envs.calvin.sentences import SENTENCES
from rdvla.experts import make_expert

HELD_Z = 0.466
"""Height of the hand that holds a block on the table, m: the same in the four scenes."""


def arms(env: CalvinEnv, rng: np.random.Generator) -> list[np.ndarray]:
    """Return where arms are while experts work: `robot_obs` of every sixth step of twelve drawn chains."""
    expert, found = make_expert(env.task), []
    for _ in range(12):
        env.reset(Seed(int(rng.integers(2**31))))
        expert.reset(env)
        for step in range(300):
            env.step(expert.act(env))
            if env.stage_index == len(env.stages):
                break
            if step % 6 == 0:
                found.append(env.simulation.robot_obs())
    return found


def main(suite: str, seed: int, scenes: int, output: Path) -> None:
    """Write the dataset."""
    rng = np.random.default_rng(seed)
    sizes = {STANDARD_CAMERAS[name]: size for name, size in (("primary", (200, 200)), ("wrist", (84, 84)))}
    features = demonstration_features(sizes, CALVIN.state_names, CALVIN.action_names, "video")
    features |= {FRESH_KEY: Feature("bool", (1,))}
    writer = LeRobotWriter(output, fps=CALVIN.control_hz, features=features, robot_type=CALVIN.robot_type)
    action = np.zeros((2, 7), np.float32)
    action[:, 6] = 1, -1
    with make_env(suite, 0) as env:
        poses = arms(env, rng)
        colours = [name.removeprefix("block_") for name in env.simulation.config.blocks]
        for number in range(scenes):
            if number % 50 == 0:
                env.reset(Seed(int(rng.integers(2**31))))  # a new simulation
            chain, scene = random_start(rng, env.simulation.config)
            pose = np.array(poses[0] if rng.random() < 0.4 else poses[rng.integers(len(poses))])
            pose[6], pose[14] = 0.08, 1.0  # open
            env.simulation.reset(pose, scene)
            state = env.state()
            state[7] = 1.0
            images = {STANDARD_CAMERAS[name]: [env.frame(name)] for name in ("primary", "wrist")}
            blocks = np.split(env.simulation.scene_obs()[6:], len(colours))
            for colour, block in zip(colours, blocks, strict=True):
                if chain.initial[f"{colour}_block"] != "table":
                    continue
                tasks = [f"lift_{colour}_block_table", f"rotate_{colour}_block_left", f"rotate_{colour}_block_right"]
                there = state.copy()
                sentence = str(rng.choice(SENTENCES[tasks[rng.integers(3)]]))
                there[:3] = *block[:2], HELD_Z
                columns = {"observation.state": np.stack([state, there]), "action": action}
                columns[FRESH_KEY] = np.array([True, False])
                writer.add_episode(RecordedEpisode(sentence, columns, images, np.zeros(2, np.int64)))
    writer.finalize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
