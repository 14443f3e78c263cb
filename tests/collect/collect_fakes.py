"""A demonstrator for the toy, and environments that break, importable by worker processes."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import chain_fakes
from rdvla.envs import Seed
from rdvla.envs.toy import ToyEnv, ToySuite
from rdvla.errors import CheckpointError, SimulatorError


class Step(NamedTuple):
    clean: np.ndarray
    executed: np.ndarray


class ToyDemonstrator:
    """Solves the toy tasks with a little noise. Every fifth placement it fails on purpose."""

    def prepare(self, suite):
        pass

    def reset(self, env, *, seed):
        self.rng = np.random.default_rng(seed)
        self.lazy = seed % 5 == 0

    def act(self, env):
        scene = env.privileged()
        action = np.zeros(7, dtype=np.float32)
        goal = scene.target.copy()
        grasp = scene.must_lift and np.abs(scene.hand - goal).max() < 0.05
        if scene.holding:
            goal = scene.hand + np.array([0, 0, 1])
        elif np.abs(scene.hand[:2] - goal[:2]).max() > 0.05:
            goal[2] = 0.6
        action[:3] = np.clip((goal - scene.hand) / 0.1, -1, 1)
        action[6] = 1.0 if grasp or scene.holding else -1.0
        if self.lazy:
            action[:] = 0
        executed = action.copy()
        executed[:3] = np.clip(executed[:3] + self.rng.normal(scale=0.1, size=3), -1, 1)
        return Step(action, executed.astype(np.float32))


def make_demonstrator(task):
    return ToyDemonstrator()


class Pusher(ToyDemonstrator):
    def reset(self, env, *, seed):
        pass

    def act(self, env):
        return Step(np.array([env.steps], np.float32), np.zeros(1, np.float32))


def make_pusher(task):
    return Pusher()


class Threes(chain_fakes.ChainEnv):
    """Every stage takes three steps."""

    def reset(self, start):
        super().reset(Seed(3))


class ThreesSuite(chain_fakes.ChainSuite):
    def make_env(self, task_id, *, camera_size=None):
        return Threes()


class Unloadable(ToyDemonstrator):
    def reset(self, env, *, seed):
        raise CheckpointError("the weights are damaged")


def make_unloadable(task):
    return Unloadable()


class HeldToy(ToyEnv):
    """Stands still once `count` episodes are staged in `folder`, until the process that staged them is gone."""

    def __init__(self, folder, count, *args, **options):
        super().__init__(*args, **options)
        self.folder, self.count, self.collector = folder, count, os.getppid()

    def step(self, action):
        while len(list(self.folder.rglob("*.npz"))) >= self.count and os.getppid() == self.collector:
            time.sleep(0.01)
        return super().step(action)


class Breaking(ToyEnv):
    """Breaks in the episodes that a file names as 'kill' or 'raise', once each."""

    def reset(self, start):
        super().reset(start)
        plan = Path(os.environ["RDVLA_TEST_BREAK"])
        for how in ("kill", "raise"):
            marker = plan / how
            try:
                marker.unlink()  # by one worker alone
            except FileNotFoundError:
                continue
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise SimulatorError("the physics diverged")


class Redrawn(ToyEnv):
    """Drawn by something else."""

    def versions(self):
        return super().versions() | {"renderer": "egl"}


class OtherCard(ToyEnv):
    """As drawn by another machine's graphics driver."""

    def versions(self):
        return super().versions() | {"gl_renderer": "another"}


class Hanging(ToyEnv):
    def step(self, action):
        time.sleep(600)
        return super().step(action)


def make_broken(task_id, *, camera_size):
    raise SimulatorError("no GL library")


class ChosenSuite(ToySuite):
    """The toy, of whose tasks two are collected by default."""

    demonstrated = (1, 4)


@dataclass(frozen=True)
class FakeSuite(ToySuite):
    """The toy, in environments made by `env`."""

    env: Callable = ToyEnv

    def make_env(self, task_id, *, camera_size=None):
        return self.env(task_id, camera_size=camera_size)
