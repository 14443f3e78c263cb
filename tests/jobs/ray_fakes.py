"""A player and an environment for Ray's workers, importable by name."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from rdvla.envs.toy import ToyEnv, ToySuite
from rdvla.errors import ConfigError, SimulatorError


class Obedient:
    """Does what the job says."""

    def __init__(self):
        self.jobs = []

    def play(self, job):
        self.jobs.append(job)
        match job:
            case "die":
                os._exit(3)
            case "hang":
                time.sleep(600)
            case "break":
                raise SimulatorError("the physics diverged")
            case "mistake":
                raise ConfigError("seed is wrong")
            case "defect":
                raise ZeroDivisionError("a defect")
        return (*self.jobs, os.getpid())

    def close(self):
        pass


class DyingToy(ToyEnv):
    """Kills its process in the first episode for which it can remove the file that says so."""

    def __init__(self, task_id, folder):
        super().__init__(task_id)
        self.folder = folder

    def reset(self, start):
        super().reset(start)
        try:
            (self.folder / "kill").unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DyingSuite(ToySuite):
    folder: Path = Path()

    def make_env(self, task_id, *, camera_size=None):
        return DyingToy(task_id, self.folder)


class WaitingToy(ToyEnv):
    """Says where it plays, and plays on when it may."""

    def __init__(self, task_id, folder):
        super().__init__(task_id)
        self.folder = folder

    def reset(self, start):
        super().reset(start)
        (self.folder / f"at_{os.environ['RAY_TEST_NODE']}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)


@dataclass(frozen=True)
class WaitingSuite(ToySuite):
    folder: Path = Path()

    def make_env(self, task_id, *, camera_size=None):
        return WaitingToy(task_id, self.folder)
