"""A one-dimensional world, and policies for it, importable by name so that worker processes can build them.

The robot stands at 0 and must reach +1. Each unit of action moves it by 0.1. A policy sees only the iterations it was
given: it steps towards the goal by `iterations` / 4, so that it needs fewer steps, or wins at all, with more depth.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patience import PATIENCE_S
from rdvla.embodiment import Embodiment
from rdvla.envs.base import InitState, Suite, TaskSpec
from rdvla.errors import SimulatorError
from rdvla.policy import PLAIN, Policy, PolicyMetadata
from rdvla.types import ActionChunk, Observation

MAX_STEPS = 12
TASKS = {
    "line": [TaskSpec("line", i, f"reach_{i}", f"reach the mark number {i}", MAX_STEPS) for i in range(4)],
    "other": [TaskSpec("other", i, f"other_{i}", f"do the other thing {i}", MAX_STEPS) for i in range(2)],
}

DOUBT = 0.123456

ROBOT = Embodiment("line", 10, {"primary": (32, 32)}, ("x",), ("dx",), "none")


class LineEnv:
    def __init__(self, suite: str, task_id: int) -> None:
        self.task = TASKS[suite][task_id]
        self.position, self.frames = 0.0, 0

    embodiment = ROBOT
    stage_index = 0

    @property
    def stages(self):
        return self.task.stages

    def reset(self, start):
        self.position = -0.01 * start.index if isinstance(start, InitState) else -0.001 * start.value

    def state(self):
        return np.array([self.position], dtype=np.float32)

    def frame(self, camera):
        self.frames += 1
        shade = int(np.clip(self.position, 0, 1) * 255)
        return np.full((32, 32, 3), shade, dtype=np.uint8)

    def observe(self):
        return Observation({"primary": self.frame("primary")}, self.state(), self.task.instruction)

    def step(self, action):
        self.position += 0.1 * float(action[0])
        return self.position >= 0.999

    def versions(self):
        return {"line_world": "1"}

    def close(self):
        pass


@dataclass(frozen=True)
class LineSuite(Suite):
    """The suites of `TASKS`, in environments made by `env`."""

    env: Callable = LineEnv
    embodiment = ROBOT

    def tasks(self):
        return TASKS[self.name]

    def num_init_states(self, task_id):
        return 50

    def make_env(self, task_id, *, camera_size=None):
        return self.env(self.name, task_id)


def suites(env=LineEnv):
    return {name: LineSuite(name, env=env) for name in TASKS}


class CrashingEnv(LineEnv):
    """Breaks in initial state 1 of task 0 until the file `marks` names has grown to `times` lines."""

    def __init__(self, suite, task_id, *, marks, times, how):
        super().__init__(suite, task_id)
        self.marks, self.times, self.how, self.armed = Path(marks), times, how, False

    def reset(self, start):
        super().reset(start)
        self.armed = self.task.task_id == 0 and start == InitState(1)

    def step(self, action):
        tries = len(self.marks.read_text()) if self.marks.exists() else 0
        if self.armed and tries < self.times:
            self.marks.write_text("x" * (tries + 1))
            if self.how == "exit":
                os._exit(9)
            if self.how == "hang":
                time.sleep(PATIENCE_S)
            raise SimulatorError("the world ended")
        return super().step(action)


class LinePolicy(Policy):
    """Moves by iterations / 4 per action; adaptive rules stop after 3 iterations."""

    metadata = PolicyMetadata("line policy", ("primary",), 1, 1, 8, {})

    def infer(self, observation, ask=PLAIN):
        stop = ask.stop
        fixed = stop is not None and stop.name == "fixed"
        depth = stop.max_depth if fixed else 3 + int(ask.seed % 3)
        convergence = () if fixed else tuple(10.0 ** -(1 + i) for i in range(depth))
        actions = np.full((8, 1), depth / 4, dtype=np.float32)
        return ActionChunk(actions, depth, convergence, None, {"total": 1.5 * depth, "encode": 0.5})

    def reset(self):
        pass


class DoubtingLine(Policy):
    """Solves the line world; doubts at its first decision only."""

    metadata = PolicyMetadata("line policy", ("primary",), 1, 1, 8, {})

    def __init__(self):
        self.first = True

    def infer(self, observation, ask=PLAIN):
        signals = {"doubt": DOUBT} if self.first else {"odd": math.inf}
        self.first = False
        return ActionChunk(np.full((8, 1), 0.25, dtype=np.float32), 3, signals=signals)

    def reset(self):
        self.first = True


class BrokenPolicy(LinePolicy):
    def infer(self, observation, ask=PLAIN):
        raise ZeroDivisionError("the policy has a defect")


class OracleExpert(LinePolicy):
    """Needs the environment itself and no camera."""

    metadata = PolicyMetadata("oracle", (), 1, 1, 1, {})

    def bind(self, env):
        self.env = env

    def infer(self, observation, ask=PLAIN):
        assert not observation.images
        return ActionChunk(np.array([[(1.0 - self.env.position) * 10]], dtype=np.float32))


class HeldPolicy(LinePolicy):
    """Decides nothing more once there are `count` lines in `log`, until the process that wrote them is gone."""

    def __init__(self, log, count):
        self.log, self.count, self.writer = log, count, os.getppid()

    def infer(self, observation, ask=PLAIN):
        while self.log.exists() and self.log.read_bytes().count(b"\n") >= self.count and os.getppid() == self.writer:
            time.sleep(0.01)
        return super().infer(observation, ask)


def crashing_env(suite, task_id, marks, times, how):
    return CrashingEnv(suite, task_id, marks=marks, times=times, how=how)


class ToyOracle(Policy):
    """Solves the toy tasks from privileged state, the better the deeper: at depth 1 it moves the wrong way."""

    metadata = PolicyMetadata("toy oracle", ("primary",), 8, 7, 1, {})

    def bind(self, env):
        self.env = env

    def infer(self, observation, ask=PLAIN):
        stop = ask.stop
        depth = 4 if stop is None or stop.name != "fixed" else stop.max_depth
        depth = min(depth, int(ask.budget_ms or depth))  # a millisecond per iteration
        scene = self.env.privileged()
        over = np.abs(scene.target[:2] - scene.hand[:2]).max() < 0.05
        goal = np.array([*scene.target[:2], 0.05 if over else 0.5])
        if scene.holding:
            goal = np.array([*scene.hand[:2], 0.9])
        close = scene.holding or (over and scene.must_lift and scene.hand[2] < 0.1)
        move = np.clip((goal - scene.hand) * 10, -1, 1) * (-1 if depth == 1 else 1)
        action = np.array([*move, 0, 0, 0, 1 if close else -1], dtype=np.float32)
        return ActionChunk(action[None], depth, () if depth == 1 else (0.1, 0.01, 0.0005), None, {"total": 1.0 * depth})

    def reset(self):
        pass


class ToyReacher(ToyOracle):
    """Reaches a toy square in chunks of eight actions, planned from the scene at the time of the question."""

    metadata = PolicyMetadata("toy reacher", ("primary",), 8, 7, 8, {})

    def infer(self, observation, ask=PLAIN):
        scene = self.env.privileged()
        goal = np.array([*scene.target[:2], 0.1])
        move = np.clip((goal - scene.hand) * 10 / 8, -1, 1)
        return ActionChunk(np.tile(np.array([*move, 0, 0, 0, -1], dtype=np.float32), (8, 1)), 4)
