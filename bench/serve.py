"""Measures the policy server, started as a user starts it, from clients in this process.

    python bench/serve.py --checkpoint checkpoints/rdvla_tiny_libero soak --minutes 10
    python bench/serve.py --checkpoint checkpoints/rdvla_tiny_libero throughput --seconds 30
    python bench/serve.py --checkpoint checkpoints/rdvla_tiny_libero restart

Each prints one JSON object; the exit code is 1 if a bound of `soak`, `throughput` or `restart` is not held. Every
measurement uses noise images of LIBERO's size (2 x 256 x 256) and loopback.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdvla.client import RemotePolicy
from rdvla.envs import make_env
from rdvla.horizons import Fixed
from rdvla.policy import ChunkExecutor, PolicyMetadata, StopRule
from rdvla.types import Observation

SERVE = "import typer; from rdvla.cli.serve import serve_command; typer.run(serve_command)"
LARGEST_P99_RATIO = 3.0
SMALLEST_SPEED_UP = 1.5
LARGEST_GROWTH_MIB = 20.0


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
    command = [sys.executable, "-c", SERVE, "--checkpoint", checkpoint, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready: "):
        sys.exit(f"the server did not start (exit code {process.wait()})")
    return Server(process, line.split()[1])


@contextlib.contextmanager
def running(checkpoint: str, *options: str) -> Iterator[Server]:
    server = start(checkpoint, 0, *options)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)


def noise(metadata: PolicyMetadata, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for camera in metadata.cameras}
    return Observation(images, rng.normal(0, 0.1, metadata.state_dim).astype(np.float32), "pick up the bowl")


def soak(checkpoint: str, minutes: float, rate: float, stop: StopRule) -> dict[str, Any]:
    """One client at `rate` requests per second: latencies, errors, memory of the server."""
    latencies, memory, errors = [], [], []
    with running(checkpoint) as server, RemotePolicy(server.url) as policy:
        seen = [noise(policy.metadata, seed) for seed in range(16)]
        for index in range(20):
            policy.infer(seen[index % 16], stop=stop, seed=index)
        begin = time.perf_counter()
        number = 0
        while (now := time.perf_counter()) - begin < minutes * 60:
            try:
                policy.infer(seen[number % 16], stop=stop, seed=number)
            except Exception as error:  # noqa: BLE001 - counted and reported
                errors.append(repr(error))
            latencies.append((time.perf_counter() - now) * 1000)
            if number % max(1, int(rate)) == 0:
                memory.append(server.memory_mib())
            number += 1
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        elapsed = time.perf_counter() - begin
        reconnects = policy.reconnects
    cuts = statistics.quantiles(latencies, n=1000)
    settled = memory[len(memory) // 10 :]
    result = {
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
        "memory_mib_first_last_max": [round(value, 1) for value in (settled[0], settled[-1], max(settled))],
    }
    result["held"] = bool(
        result["p99_over_p50"] <= LARGEST_P99_RATIO
        and not errors
        and not reconnects
        and settled[-1] - settled[0] <= LARGEST_GROWTH_MIB
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
            policy.infer(seen[0], stop=stop)
            begin.wait()
            until, number = time.perf_counter() + seconds, 0
            while (now := time.perf_counter()) < until:
                policy.infer(seen[number % 4], stop=stop, seed=number)
                latencies.append((time.perf_counter() - now) * 1000)
                number += 1

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(latencies), latencies


def restart(checkpoint: str, suite: str, task_id: int, steps: int, stop: StopRule) -> dict[str, Any]:
    """Kill the server twice in an episode and start it again: the same actions as without."""
    calm, _, _ = _episode(checkpoint, suite, task_id, steps, stop, kills=())
    disturbed, reconnects, longest_s = _episode(checkpoint, suite, task_id, steps, stop, kills=(steps // 3, steps // 2))
    return {
        "steps": steps,
        "reconnects": reconnects,
        "longest_step_s": round(longest_s, 2),
        "same_actions": bool(np.array_equal(calm, disturbed)),
        "held": bool(reconnects == 2 and np.array_equal(calm, disturbed)),
    }


def _episode(
    checkpoint: str, suite: str, task_id: int, steps: int, stop: StopRule, kills: tuple[int, ...]
) -> tuple[np.ndarray, int, float]:
    server = start(checkpoint)
    port = int(server.url.rpartition(":")[2])
    env = make_env(suite, task_id)
    starters: list[threading.Thread] = []
    current = [server]

    def start_again() -> None:
        current[0] = start(checkpoint, port)

    try:
        with RemotePolicy(server.url, deadline_s=120) as policy:
            executor = ChunkExecutor(policy, Fixed(5), stop=stop)
            executor.reset(seed=3)
            env.reset(init_state=0)
            actions, longest_s = [], 0.0
            for step in range(steps):
                if step in kills:
                    current[0].process.kill()
                    current[0].process.wait()
                    starters.append(threading.Thread(target=start_again))
                    starters[-1].start()
                now = time.perf_counter()
                actions.append(executor.act(env.observe))
                longest_s = max(longest_s, time.perf_counter() - now)
                env.step(actions[-1])
            return np.stack(actions), policy.reconnects, longest_s
    finally:
        for thread in starters:
            thread.join()
        current[0].process.kill()
        current[0].process.wait()
        env.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--depth", type=int, default=12, help="iterations of every decision")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("soak")
    command.add_argument("--minutes", type=float, default=10)
    command.add_argument("--rate", type=float, default=20)
    command = commands.add_parser("throughput")
    command.add_argument("--seconds", type=float, default=30)
    command.add_argument("--clients", type=int, default=8)
    command = commands.add_parser("restart")
    command.add_argument("--suite", default="libero_object")
    command.add_argument("--task-id", type=int, default=0)
    command.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    stop = StopRule.fixed(given.depth)
    if given.command == "soak":
        result = soak(given.checkpoint, given.minutes, given.rate, stop)
    elif given.command == "throughput":
        result = throughput(given.checkpoint, given.clients, given.seconds, stop)
    else:
        result = restart(given.checkpoint, given.suite, given.task_id, given.steps, stop)
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"bench": given.command, "stop": str(stop), **result, "machine": machine}, indent=1))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
