"""Evaluation and collection on a Ray cluster of two machines (here: two nodes of this one), with losses."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray_fakes import DyingSuite, Obedient, WaitingSuite
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.collect.collection import CollectConfig, collect
from rdvla.collect.demonstrators import make_demonstrator
from rdvla.envs.toy import ToySuite
from rdvla.errors import ConfigError, MissingExtraError
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import EPISODES_FILE
from rdvla.eval.runner import Resources, evaluate
from rdvla.experts.policy import ExpertPolicy
from rdvla.jobs.pool import Broken, Played, WorkerError

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")

from rdvla.jobs.ray import RayPool, RaySlot  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's own files and processes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RAY = str(Path(sysconfig.get_path("scripts")) / "ray")
HERE = str(Path(__file__).parent)
FAST = {"RAY_health_check_period_ms": "500", "RAY_USAGE_STATS_ENABLED": "0"}
MEMORY = "--object-store-memory=80000000"


class Node:
    """A node of the cluster with room for one worker: a group of processes that can be killed."""

    def __init__(self, name, *options):
        path = os.pathsep.join([HERE, *filter(None, sys.path)])
        env = {**os.environ, **FAST, "PYTHONPATH": path, "RAY_TEST_NODE": name}
        command = [RAY, "start", "--block", "--num-cpus=1", MEMORY, "--disable-usage-stats", *options]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.address = ""
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(r"ray start --address='([^']+)'", line):
                self.address = found[1]
            if "--block" in line:
                return
        raise AssertionError(f"node {name} did not start:\n{''.join(said)}")

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    temporary = tmp_path_factory.mktemp("ray", numbered=True)
    node = Node("head", "--head", "--port=0", "--include-dashboard=false", f"--temp-dir={temporary}")
    try:
        RayPool(node.address)
        yield node.address
    finally:
        ray.shutdown()
        node.kill()


@pytest.fixture
def second(head):
    node = Node("second", f"--address={head}")
    yield node
    node.kill()


def play(pool, slot, job, timeout_s=600.0):
    while not slot.ready:
        pool.wait([], 0.1)
    slot.send(job, ("s", 0))
    while (reply := slot.receive(timeout_s)) is None:
        pool.wait([slot], 0.1)
    return reply


def test_an_actor_is_kept_until_it_breaks(head):
    pool = RayPool()
    (slot,) = pool.open(Obedient, 1)
    first = play(pool, slot, "a").result
    assert play(pool, slot, "b") == Played(("a", "b", first[-1]))
    assert play(pool, slot, "break") == Broken("the physics diverged")
    assert play(pool, slot, "c").result[:-1] == ("c",)
    assert "the worker died" in play(pool, slot, "die").message
    assert play(pool, slot, "hang", timeout_s=0.2) == Broken("the episode was still running after 0.2 s")
    with pytest.raises(ConfigError, match=r"^seed is wrong$"):
        play(pool, slot, "mistake")
    slot.kill()
    with pytest.raises(WorkerError, match=r"(?s)ZeroDivisionError: a defect.*in play"):
        play(pool, slot, "defect")
    slot.kill()


SETTINGS = EvalConfig(policy="expert", suites=("toy",), task_ids=(0, 3, 4), init_states=(0, 1, 2), horizons=("1",))


def run(output, suite=None, pool=None):
    resources = Resources(workers=2) if pool is None else Resources(workers=2, pool=pool)
    suites = {"toy": suite or ToySuite("toy")}
    return evaluate(SETTINGS, suites=suites, policy_factory=ExpertPolicy, output=output, resources=resources)


def plain(records, *also):
    return [record.model_dump(exclude={"wall_s", "latency_ms", *also}) for record in records]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What processes of this machine play."""
    return run(tmp_path_factory.mktemp("reference"))


def test_a_killed_worker_costs_its_episode_a_second_try(head, second, reference, tmp_path):
    (tmp_path / "kill").touch()
    records = run(tmp_path / "out", DyingSuite("toy", folder=tmp_path), RayPool())
    assert plain(records, "attempts") == plain(reference, "attempts")
    assert sorted(record.attempts for record in records) == [1] * 8 + [2]


def test_a_lost_machine_costs_its_episode_a_second_try(head, second, reference, tmp_path):
    """The node goes while both play; whoever is told about progress kills it, so nothing depends on time."""
    places = [tmp_path / "at_head", tmp_path / "at_second"]

    class Watched(RayPool):
        def wait(self, busy, timeout_s):
            super().wait(busy, 0.1)
            if all(place.exists() for place in places) and not (tmp_path / "go").exists():
                second.kill()
                (tmp_path / "go").touch()

    records = run(tmp_path / "out", WaitingSuite("toy", folder=tmp_path), Watched())
    assert plain(records, "attempts") == plain(reference, "attempts")
    assert sorted(record.attempts for record in records) == [1] * 8 + [2]


def test_what_processes_began_a_cluster_continues(head, reference, tmp_path):
    run(tmp_path)
    lines = (tmp_path / EPISODES_FILE).read_text().splitlines(keepends=True)
    (tmp_path / EPISODES_FILE).write_text("".join(lines[:4]))
    assert plain(run(tmp_path, pool=RayPool())) == plain(reference)
    assert (tmp_path / EPISODES_FILE).read_text().startswith("".join(lines[:4]))


def test_a_collection_on_a_cluster_is_the_same(head, tmp_path):
    for name, pool in (("here", None), ("there", RayPool())):
        config = CollectConfig(
            tmp_path / name, ("toy",), (0, 4), episodes=2, workers=2, camera_size=32, storage="image", keep_staging=True
        )
        collect(config, suites={"toy": ToySuite("toy")}, make_expert=make_demonstrator, pool=pool)
    here, there = (json.loads((tmp_path / name / "collect.json").read_text()) for name in ("here", "there"))
    assert [row["placement_seed"] for row in here["episodes"]] == [row["placement_seed"] for row in there["episodes"]]
    for path in (tmp_path / "here" / "data").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "there" / path.relative_to(tmp_path / "here")).read_bytes()


def test_the_command_line(head, tmp_path):
    command = ["eval", "--suite", "toy", "--task-ids", "4", "--policy", "expert", "--episodes", "2", "--pool", "ray"]
    result = CliRunner().invoke(app, [*command, "--address", head, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "100.0%" in result.output


@pytest.mark.parametrize("name", ["OutOfMemoryError", "NodeDiedError", "WorkerCrashedError", "OwnerDiedError"])
def test_what_a_cluster_loses_is_played_again(name):
    """By the memory monitor, say, or with the machine that holds a reply."""
    kind = getattr(ray.exceptions, name)
    lost, killed = type(name, (kind,), {"__init__": lambda _: None, "__str__": lambda _: "gone"})(), []

    def get(reference, timeout=None):
        raise lost

    cluster = SimpleNamespace(
        exceptions=ray.exceptions,
        wait=lambda references, timeout: (references, []),
        get=get,
        kill=killed.append,
        remote=lambda actor: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: Actor())),
    )
    slot = RaySlot(cluster, Obedient, {})
    assert not slot.ready, "its machine went before it ran"
    slot._actor, slot._running = Actor(), None
    slot.send("one", ("suite", 0))
    assert isinstance(slot.receive(600), Broken)
    assert (slot.job, len(killed)) == (None, 2)


class Actor:
    """Stands for an actor whose calls are never answered."""

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *_: name)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"rdvla\[ray\]"):
        RayPool()


def test_options_of_a_cluster_need_one(tmp_path):
    for option in (["--address", "auto"], ["--gpus-per-worker", "0.5"]):
        command = ["eval", "--suite", "toy", "--policy", "expert", "--output", str(tmp_path), *option]
        result = CliRunner().invoke(app, command)
        assert f"{option[0]} belongs to a Ray cluster; add --pool ray" in str(result.exception)
