"""`rdvla eval --policy ws://...`: the same episodes as with the local policy, action by action."""

import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from patience import PATIENCE_S, kept_port
from rdvla import __version__
from rdvla.cli.eval import eval_command
from rdvla.envs import Env, InitState
from rdvla.envs.toy import ToySuite
from rdvla.errors import ConfigError, ServeError
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import EpisodeRecord, read_records
from rdvla.eval.runner import Resources, evaluate
from rdvla.policies.sources import connect
from rdvla.robot.client import RemotePolicy
from rdvla.server.background import serving
from rdvla.stops import StopRule
from serve_fakes import QUICK, FakePolicy

STOPS = (StopRule.fixed(3), StopRule("action_l2", max_depth=9))


class RecordingEnv:
    """An environment that writes every action of an episode to a file, wherever it runs."""

    def __init__(self, env: Env, folder: Path) -> None:
        self._env, self._folder = env, folder
        self._episodes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._env, name)

    def reset(self, start: InitState) -> None:
        self._episodes += 1
        name = f"{self._env.task.task_id}_{start.index}_{self._episodes}_{id(self)}_{threading.get_native_id()}.f32"
        self._path = self._folder / name
        self._env.reset(start)

    def step(self, action: np.ndarray) -> bool:
        with self._path.open("ab") as file:
            file.write(np.asarray(action, np.float32).tobytes())
        return self._env.step(action)


@dataclass(frozen=True)
class RecordingSuite(ToySuite):
    folder: Path = Path()

    def make_env(self, task_id: int, *, camera_size: int | None = None) -> RecordingEnv:  # type: ignore[override]
        return RecordingEnv(super().make_env(task_id, camera_size=camera_size), self.folder)


def play(policy_factory, output: Path, *, workers: int) -> tuple[list[tuple], list[tuple]]:  # type: ignore[no-untyped-def,type-arg]
    """Return what eight toy episodes came to, without the times, and (task, initial state, actions) of each."""
    config = EvalConfig(
        policy=output.name, suites=("toy",), task_ids=(0, 4), init_states=(0, 1), stops=STOPS, horizons=("5",), seed=3
    )
    actions = output.with_name(output.name + "_actions")
    actions.mkdir()
    records = evaluate(
        config,
        suites={"toy": RecordingSuite("toy", folder=actions)},
        policy_factory=policy_factory,
        output=output,
        resources=Resources(workers=workers),
    )
    assert all(isinstance(record, EpisodeRecord) for record in records)
    came_to = [
        (r.key, r.episode_seed, r.success, r.steps, r.iterations, r.executed, r.convergence)
        for r in records
        if isinstance(r, EpisodeRecord)
    ]
    executed = [(*path.name.split("_")[:2], path.read_bytes()) for path in actions.iterdir()]
    return came_to, sorted(executed)


def test_another_policy_behind_the_address_is_refused_when_an_evaluation_is_continued(tmp_path: Path) -> None:
    """One table of two policies is worse than none."""
    arguments = {"suite": "toy", "task_ids": "0", "episodes": 1, "output": tmp_path / "out"}
    with kept_port() as port:
        url, config = f"ws://127.0.0.1:{port}", QUICK.model_copy(update={"port": port})
        with serving(FakePolicy(), config):
            eval_command(**arguments, policy=url)
            (record,) = read_records(tmp_path / "out")
            served = f"fake, own rule, rdvla {__version__}"
            assert record.versions["checkpoint"] == served
        with serving(FakePolicy(), config):
            eval_command(**arguments, policy=url)  # the same again: nothing to do
        for other in ({"checkpoint": "0123456789abcdef"}, {"default_stop": StopRule.fixed(3)}):
            with serving(FakePolicy(), config, **other), pytest.raises(ConfigError, match="policy_digest was 'fake"):
                eval_command(**arguments, policy=url)
    assert read_records(tmp_path / "out") == [record]


def test_a_worker_that_finds_another_policy_does_not_play(tmp_path: Path) -> None:
    with serving(FakePolicy(), QUICK) as server, pytest.raises(ServeError, match="now serves another policy"):
        connect(server.url, "the one before")


@pytest.mark.slow
def test_the_same_episodes_and_actions_as_the_local_policy(tmp_path: Path) -> None:
    local, local_actions = play(FakePolicy, tmp_path / "local", workers=1)
    with serving(FakePolicy(), QUICK) as server:
        there = partial(RemotePolicy, server.url, deadline_s=PATIENCE_S, connect_timeout_s=PATIENCE_S)
        remote, remote_actions = play(there, tmp_path / "remote", workers=2)
    assert len(local) == len(local_actions) == 8
    assert len({actions for _, _, actions in local_actions}) == 8  # every rule and state acts differently
    assert remote == local
    assert remote_actions == local_actions
