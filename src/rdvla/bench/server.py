"""The policy server, started as a user starts it, measured from clients in this process, all over loopback.

`soak` and `throughput` send noise images of LIBERO's size (2 x 256 x 256); `restart` plays an episode in the simulator.
"""

import contextlib
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.client import RemotePolicy
from rdvla.envs import InitState, make_env
from rdvla.envs.episode import play
from rdvla.errors import RDVLAError, ServeError
from rdvla.execution import Executor, Synchronous
from rdvla.policy import Ask, PolicyMetadata
from rdvla.stops import StopRule
from rdvla.types import Observation

LARGEST_P99_RATIO = 3.0
SMALLEST_SPEED_UP = 1.5
LARGEST_GROWTH_MIB = 20.0
WARM_UP = 100
BEGIN_S = 120.0
"""Within which all clients have connected."""


@dataclass
class Server:
    """A running `rdvla serve`."""

    process: "subprocess.Popen[str]"
    url: str

    def memory_mib(self) -> float:
        """Return its resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def metric(self, name: str) -> float:
        """Return the sum of one of its metrics over all labels."""
        with urllib.request.urlopen(self.url.replace("ws", "http", 1) + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def start(checkpoint: str, port: int = 0, *options: str) -> Server:
    """Start a server and return once it is ready.

    Raises:
        ServeError: it ended instead.
    """
    command = [sys.executable, "-m", "rdvla", "serve", "--checkpoint", checkpoint, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready: "):
        raise ServeError(f"the server did not start (exit code {process.wait()}); its message is above.")
    return Server(process, line.split()[1])


@contextlib.contextmanager
def running(checkpoint: str, *options: str) -> Iterator[Server]:
    """Run a server while the block lasts."""
    server = start(checkpoint, 0, *options)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.communicate(timeout=30)


def noise(metadata: PolicyMetadata, seed: int) -> Observation:
    """Return an observation of noise."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for camera in metadata.cameras}
    return Observation(images, rng.normal(0, 0.1, metadata.state_dim).astype(np.float32), "pick up the bowl")


def soak(checkpoint: str, minutes: float, rate: float, stop: StopRule) -> dict[str, Any]:
    """One client at `rate` requests per second: latencies, errors, memory of the server."""
    latencies, memory, errors = [], [], []
    with running(checkpoint) as server, RemotePolicy(server.url) as policy:
        seen = [noise(policy.metadata, seed) for seed in range(16)]
        for index in range(WARM_UP):
            policy.infer(seen[index % 16], Ask(stop, index))
        begin = time.perf_counter()
        number = 0
        while (now := time.perf_counter()) - begin < minutes * 60 or number < 2:  # two make a quantile
            try:
                policy.infer(seen[number % 16], Ask(stop, number))
            except RDVLAError as error:  # counted and reported
                errors.append(repr(error))
            latencies.append((time.perf_counter() - now) * 1000)
            if number % max(1, int(rate)) == 0:
                memory.append(server.memory_mib())
            number += 1
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        elapsed = time.perf_counter() - begin
        reconnects = policy.reconnects
    cuts = statistics.quantiles(latencies, n=1000)
    result: dict[str, Any] = {
        "requests": len(latencies),
        "requests_per_s": round(len(latencies) / elapsed, 2),
        "p50_ms": round(cuts[499], 2),
        "p95_ms": round(cuts[949], 2),
        "p99_ms": round(cuts[989], 2),
        "max_ms": round(max(latencies), 2),
        "p99_over_p50": round(cuts[989] / cuts[499], 2),
        "errors": len(errors),
        "first_errors": errors[:3],
        "reconnects": reconnects,
        "memory_mib_start": round(memory[0], 1),
        "memory_mib_end": round(memory[-1], 1),
        "memory_mib_most": round(max(memory), 1),
    }
    result["held"] = bool(
        result["p99_over_p50"] <= LARGEST_P99_RATIO
        and not errors
        and not reconnects
        and memory[-1] - memory[0] <= LARGEST_GROWTH_MIB
    )
    return result


def throughput(checkpoint: str, clients: int, seconds: float, stop: StopRule) -> dict[str, Any]:
    """Requests per second of one client and of `clients`, each asking again as soon as it is answered."""
    result: dict[str, Any] = {}
    with running(checkpoint) as server:
        for count in (1, clients):
            before = server.metric("rdvla_batch_size_count"), server.metric("rdvla_batch_size_sum")
            answers, latencies = _ask_from_threads(server.url, count, seconds, stop)
            after = server.metric("rdvla_batch_size_count"), server.metric("rdvla_batch_size_sum")
            result[f"{count}_clients"] = {
                "requests_per_s": round(answers / seconds, 2),
                "p50_ms": round(statistics.median(latencies), 2),
                "mean_batch": round((after[1] - before[1]) / max(1.0, after[0] - before[0]), 2),
            }
    speed_up = result[f"{clients}_clients"]["requests_per_s"] / result["1_clients"]["requests_per_s"]
    return result | {"speed_up": round(speed_up, 2), "held": speed_up >= SMALLEST_SPEED_UP}


def _ask_from_threads(url: str, clients: int, seconds: float, stop: StopRule) -> tuple[int, list[float]]:
    latencies: list[float] = []
    begin = threading.Barrier(clients)

    def ask(client: int) -> None:
        with RemotePolicy(url) as policy:
            seen = [noise(policy.metadata, 100 * client + index) for index in range(4)]
            policy.infer(seen[0], Ask(stop))
            begin.wait(BEGIN_S)
            until, number = time.perf_counter() + seconds, 0
            while (now := time.perf_counter()) < until:
                policy.infer(seen[number % 4], Ask(stop, number))
                latencies.append((time.perf_counter() - now) * 1000)
                number += 1

    with ThreadPoolExecutor(clients) as pool:
        for client in as_completed([pool.submit(ask, client) for client in range(clients)]):
            if error := client.exception():
                begin.abort()  # the others would wait for this one
                raise error
    return len(latencies), latencies


def restart(checkpoint: str, suite: str, task_id: int, steps: int | None, stop: StopRule) -> dict[str, Any]:
    """Kill the server twice amid a decision of an episode and start it again: the same actions as without."""
    calm = _episode(checkpoint, suite, task_id, steps, stop, kills=())
    kills = (len(calm.actions) // 3, len(calm.actions) // 2)
    disturbed = _episode(checkpoint, suite, task_id, steps, stop, kills=kills)
    same = bool(np.array_equal(calm.actions, disturbed.actions))
    return {
        "steps": len(disturbed.actions),
        "solved": disturbed.solved,
        "decisions": disturbed.decisions,
        "decisions_undisturbed": calm.decisions,
        "killed_at_steps": list(kills),
        "reconnects": disturbed.reconnects,
        "longest_step_s": round(disturbed.longest_s, 2),
        "same_actions": same,
        "held": bool(same and disturbed.reconnects == len(kills) and disturbed.decisions == calm.decisions),
    }


@dataclass
class ServedEpisode:
    """What an episode came to."""

    actions: NDArray[np.float32]
    solved: bool
    decisions: int
    reconnects: int
    longest_s: float


class Restarter:
    """Kills a server while it decides, and starts it again on the same port."""

    def __init__(self, server: Server, checkpoint: str) -> None:
        self.server, self._checkpoint = server, checkpoint
        self._port = int(server.url.rpartition(":")[2])
        self._threads: list[threading.Thread] = []

    def strike(self) -> None:
        """Do so in a few milliseconds, when the request is under way."""
        for thread in self._threads:
            thread.join()
        self._threads.append(threading.Timer(0.01, self._restart))
        self._threads[-1].start()

    def _restart(self) -> None:
        self.server.process.kill()
        self.server.process.communicate()
        self.server = start(self._checkpoint, self._port)

    def close(self) -> None:
        """End the server that runs last."""
        for thread in self._threads:
            thread.join()
        self.server.process.kill()
        self.server.process.communicate()


def _episode(
    checkpoint: str, suite: str, task_id: int, steps: int | None, stop: StopRule, kills: tuple[int, ...]
) -> ServedEpisode:
    env = make_env(suite, task_id)
    restarter = Restarter(start(checkpoint), checkpoint)
    actions: list[NDArray[np.float32]] = []
    due, longest_s = list(kills), 0.0

    def observe() -> Observation:
        if due and len(actions) >= due[0]:
            due.pop(0)
            restarter.strike()
        return env.observe()

    try:
        with RemotePolicy(restarter.server.url, deadline_s=120) as policy:
            executor = Executor(policy, Synchronous(5), Ask(stop))
            executor.reset(seed=3)
            for turn in islice(play(env, InitState(0)), steps):
                now = time.perf_counter()
                actions.append(executor.act(observe))
                longest_s = max(longest_s, time.perf_counter() - now)
                turn.execute(actions[-1])
            return ServedEpisode(
                np.stack(actions), bool(turn.solved), len(executor.decisions), policy.reconnects, longest_s
            )
    finally:
        restarter.close()
        env.close()
