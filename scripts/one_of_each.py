"""In whatever environment runs it: one decision of the shipped policy, one training step, one episode."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rdvla.hub import SHIPPED
from rdvla.policies import load_policy
from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.types import Observation

CONFIG = Path(__file__).parents[1] / "configs" / "train" / "tiny_libero.yaml"
SENTENCE = "pick up the milk and place it in the basket"


def decide() -> None:
    """Decide twice with the same seed: the same actions, within the range of LIBERO's."""
    policy = load_policy(SHIPPED)
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for camera in policy.metadata.cameras}
    seen = Observation(images, np.zeros(policy.metadata.state_dim, dtype=np.float32), SENTENCE)
    one, two = (policy.infer(seen, Ask(StopRule.fixed(12), seed=3)).actions for _ in range(2))
    if not (np.array_equal(one, two) and np.isfinite(one).all()):
        sys.exit("two decisions with one seed differ, or are not finite")
    print("one decision:", np.array2string(one[0], precision=4, floatmode="fixed"))


def train_and_play() -> None:
    """Collect the toy's tasks, train for one step, play an episode with what came out."""
    with TemporaryDirectory() as temporary:
        data, output = Path(temporary) / "data", Path(temporary) / "run"
        rdvla("collect", "--suite", "toy", "--episodes", "2", "--workers", "1", "--output", data)
        options = {
            "data.root": data, "data.gripper": "none", "data.validation_fraction": 0.1, "output": output,
            "model.head.mean_recurrence": 4, "model.head.backprop_depth": 2, "batch_size": 4, "validation_samples": 4,
            "max_steps": 1, "save_freq": 1, "validate_freq": 1, "log_freq": 1, "validation_depths": "[1, 2]",
            "trackers": "[]", "num_threads": 1, "device": "cpu",
        }  # fmt: skip
        rdvla("train", "--config", CONFIG, *(f"--{name}={value}" for name, value in options.items()))
        if not (output / "policy" / "model.safetensors").is_file():
            sys.exit("training left no policy")
        print("one training step: done")
        play = ("eval", "--suite", "toy", "--task-ids", "0", "--seeds", "0", "--depth", "2", "--workers", "1")
        rdvla(*play, "--checkpoint", output / "policy", "--output", Path(temporary) / "played")
        print("one episode: played")


def rdvla(*arguments: object) -> None:
    """Run a command of ours in this environment; its output is shown only if it fails."""
    command = [sys.executable, "-m", "rdvla", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    names = ("torch", "numpy", "transformers", "huggingface-hub", "pillow")
    print(", ".join(f"{name} {version(name)}" for name in names))
    decide()
    train_and_play()
