"""An environment whose episodes have three stages; a start's number says how many steps each of them takes."""

import numpy as np

from rdvla.embodiment import Embodiment
from rdvla.envs import InitState, Stage, Suite, TaskSpec
from rdvla.policy import PLAIN, Policy, PolicyMetadata
from rdvla.types import ActionChunk, Observation

ROBOT = Embodiment("counter", 10, {"primary": (16, 16)}, ("count",), ("push",), "none")
CHAIN = (Stage("one", "do one", 5), Stage("two", "do two", 3), Stage("three", "do three", 5))
TASK = TaskSpec("chain", 0, "chain", "do one, two, three", 13)


class ChainEnv:
    task, embodiment, stages = TASK, ROBOT, CHAIN

    def __init__(self):
        self.resets, self.steps, self.stage_index, self.in_stage = [], 0, 0, 0

    def reset(self, start):
        self.resets.append(start)
        self.steps = self.stage_index = self.in_stage = 0
        self.needed = start.index if isinstance(start, InitState) else start.value

    def observe(self):
        stage = CHAIN[min(self.stage_index, 2)]
        return Observation({"primary": self.frame("primary")}, self.state(), stage.instruction)

    def frame(self, camera):
        return np.full((16, 16, 3), self.steps, np.uint8)

    def state(self):
        return np.array([self.steps], np.float32)

    def step(self, action):
        self.steps += 1
        self.in_stage += 1
        solved = self.in_stage >= self.needed
        if solved:
            self.stage_index, self.in_stage = self.stage_index + 1, 0
        return solved

    def versions(self):
        return {"chain": "1"}

    def close(self):
        pass


class Pusher(Policy):
    metadata = PolicyMetadata("pusher", ("primary",), 1, 1, 8, {})

    def infer(self, observation, ask=PLAIN):
        return ActionChunk(np.zeros((8, 1), np.float32), num_recurrences=3)

    def reset(self):
        pass


class ChainSuite(Suite):
    embodiment = ROBOT
    num_stages = 3
    protocols = ("short", "long")

    def tasks(self):
        return [TASK]

    def num_init_states(self, task_id):
        return 5

    def make_env(self, task_id, *, camera_size=None):
        return ChainEnv()
