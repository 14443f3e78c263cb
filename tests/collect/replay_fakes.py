"""LIBERO demonstrations in the layout of the original HDF5 files, and an environment that can be restored."""

import json

import h5py
import numpy as np

from rdvla.envs.base import TaskSpec
from rdvla.types import Observation

SENTENCE = "pick up the alphabet soup and place it in the basket"
TASK = SENTENCE.replace(" ", "_")


def demonstration(seed, length=6, still=()):
    """Random states, images and actions; the arm does nothing at the steps `still`."""
    rng = np.random.default_rng(seed)
    actions = np.concatenate([rng.uniform(0.1, 1, (length, 6)), np.full((length, 1), -1.0)], axis=1)
    actions[list(still), :6] = 0.0
    return {
        "actions": actions,
        "states": rng.normal(size=(length, 5)),
        "obs/ee_states": rng.normal(size=(length, 6)),
        "obs/gripper_states": rng.normal(size=(length, 2)),
        "obs/agentview_rgb": rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8),
        "obs/eye_in_hand_rgb": rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8),
    }


def write_file(folder, demonstrations, *, task=TASK, sentence=SENTENCE):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}_demo.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["problem_info"] = json.dumps({"language_instruction": sentence})
        for number, arrays in enumerate(demonstrations):
            for name, values in arrays.items():
                file[f"data/demo_{number}/{name}"] = values
    return path


class FakeEnv:
    """Counts its steps; the task is solved after `needed` of them."""

    stage_index = 0

    def __init__(self, suite, task_id, *, needed=0):
        self.task = TaskSpec(suite, task_id, TASK, SENTENCE, 100)
        self.needed = needed
        self.restored = []
        self.taken = []
        self.closed = False

    @property
    def stages(self):
        return self.task.stages

    def restore(self, state, *, episode=0):
        self.restored.append((state, episode))
        self.taken = []

    def observe(self):
        image = np.full((32, 32, 3), len(self.taken), np.uint8)
        return Observation({"primary": image, "wrist": image + 100}, self.state(), SENTENCE)

    def state(self):
        return np.full(8, len(self.taken), np.float32)

    def step(self, action):
        self.taken.append(action)
        return len(self.taken) >= self.needed

    def close(self):
        self.closed = True
