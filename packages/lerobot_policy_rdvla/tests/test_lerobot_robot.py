"""LeRobot's own commands drive a robot with our policy behind them, one decision after the other (`make lerobot`)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lerobot_robot_rehearsal import CAMERAS, JOINTS, seen

from rdvla.checkpoints import load
from rdvla.checkpoints.lerobot import save_lerobot
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.policies import load_policy
from rdvla.policy import Ask, decision_seed
from rdvla.stops import StopRule
from rdvla.types import Observation

SHIPPED = "rdvla_tiny_libero"
SENTENCE = "pick up the milk and place it in the basket"
HERE = Path(__file__).parent
ROLLOUT = (
    importlib.util.find_spec("lerobot.rollout") is not None
)  # LeRobot 0.6; before, `lerobot-record` takes policies


@pytest.fixture
def installed(tmp_path):
    """A folder for PYTHONPATH in which the robot is an installed distribution: LeRobot finds it by its name."""
    site = tmp_path / "site"
    shutil.copytree(HERE / "lerobot_robot_rehearsal", site / "lerobot_robot_rehearsal")
    about = site / "lerobot_robot_rehearsal-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_robot_rehearsal\nVersion: 0\n")
    return site


def drive(installed, tmp_path):
    """Drive the robot for two seconds by LeRobot's own command; return its actions `[N, 7]` and the log."""
    save_lerobot(tmp_path / "policy", load(SHIPPED))
    options = [
        "--robot.type=rehearsal",
        f"--robot.log={tmp_path / 'actions.jsonl'}",
        f"--policy.path={tmp_path / 'policy'}",
        "--policy.device=cpu",
        "--policy.depth=4",
        "--policy.n_action_steps=4",
        "--policy.seed=7",
        "--play_sounds=false",
        "--dataset.fps=10",
        "--dataset.num_episodes=1",
        "--dataset.episode_time_s=2",
        f"--dataset.single_task={SENTENCE}",
        f"--dataset.root={tmp_path / 'recorded'}",
        "--dataset.push_to_hub=false",
    ]
    if ROLLOUT:
        command = ["lerobot-rollout", "--strategy.type=episodic", "--fps=10", "--return_to_initial_position=false"]
        options += ["--strategy.reset_to_initial_position=false", "--dataset.repo_id=me/rollout_milk"]
    else:
        command, options = ["lerobot-record"], [*options, "--dataset.repo_id=me/eval_milk"]
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "HF_LEROBOT_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    command[0] = str(Path(sys.executable).parent / command[0])
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-4000:]
    return np.array([json.loads(line) for line in (tmp_path / "actions.jsonl").read_text().splitlines()]), told


def expected(n_actions):
    """What the policy itself does: decisions of four actions, each seeing what the robot saw by then."""
    policy = load_policy(SHIPPED)
    resets = 2 if ROLLOUT else 1  # before the first decision; loading is the zeroth
    entropy = np.random.SeedSequence([7, resets, 0])  # policy.seed, episode, row
    episode = int(entropy.generate_state(1, np.uint64)[0] >> 1)
    actions = []
    while len(actions) < n_actions:
        shown = seen(len(actions))
        images = {ours: shown[theirs] for theirs, ours in zip(CAMERAS, ("primary", "wrist"), strict=True)}
        state = np.array([shown[joint] for joint in JOINTS], np.float32)
        ask = Ask(StopRule.fixed(4), seed=decision_seed(episode, len(actions) // 4))
        actions += list(policy.infer(Observation(images, state, SENTENCE), ask).actions[:4])
    return np.array(actions[:n_actions])


@pytest.mark.slow
def test_a_robot_does_what_the_policy_says(installed, tmp_path):
    actions, told = drive(installed, tmp_path)
    assert len(actions) > 0
    np.testing.assert_allclose(actions, expected(len(actions)), atol=1e-6)
    assert f"{-(-len(actions) // 4)} decisions, 4.00 iterations on average" in told
    (recorded,) = (path.parents[1] for path in tmp_path.rglob("meta/info.json"))
    chunks = LeRobotDataset.open(recorded, chunk_size=1, cache_dir=tmp_path / "cache").batch(range(len(actions)))
    np.testing.assert_allclose(chunks.actions[:, 0], actions, atol=1e-6)
    assert chunks.instructions == (SENTENCE,) * len(actions)
