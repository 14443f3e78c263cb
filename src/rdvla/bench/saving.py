"""What every way to decide in less time changes.

Plays initial states of LIBERO with the plain policy (float32, looking at the actions after every iteration), keeps what
it saw, and decides all of that again in each way, from the same scratchpads: time per decision, iterations, how many
decisions stop elsewhere, and how far the actions are from the plain ones. The last column compares with what another
scratchpad changes. Times are medians; repetitions of all ways are interleaved.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdvla.bench.table import Table
from rdvla.envs import Env, InitState, list_tasks, make_env
from rdvla.envs.episode import play
from rdvla.execution import Executor, Synchronous
from rdvla.model.freeze import PRECISIONS
from rdvla.policies.network import RDVLAPolicy, load_policy
from rdvla.policy import Ask, decision_seed
from rdvla.stops import SAFE_GATE, StopRule
from rdvla.types import ActionChunk, Observation

SEED = 7
PLAIN = StopRule("action_mse", threshold=1e-3, max_depth=32)
CHECKS = {
    "plain": PLAIN,
    "check every 2": StopRule("action_mse", threshold=1e-3, max_depth=32, check_every=2),
    "check every 4": StopRule("action_mse", threshold=1e-3, max_depth=32, check_every=4),
    "Coda deferred": StopRule("action_mse", threshold=1e-3, max_depth=32, defer=SAFE_GATE),
    "latent 0.1": StopRule("latent", threshold=0.1, max_depth=32),
    "latent 0.03": StopRule("latent", threshold=0.03, max_depth=32),
    "fixed 12": StopRule.fixed(12),
}


def measure_saving(checkpoint: Path, suite: str, count: int, repeats: int) -> Table:
    """Decide again in every way what the plain policy saw.

    Args:
        checkpoint: a checkpoint folder or the name of a shipped policy.
        suite: where to look.
        count: observations, at least 1.
        repeats: repetitions of each timing, at least 1; medians are shown.
    """
    policies = {name: load_policy(checkpoint, precision=name) for name in PRECISIONS}
    ways = {name: Way(policies["float32"], stop) for name, stop in CHECKS.items()}
    ways |= {name: Way(policies[name], PLAIN) for name in PRECISIONS if name != "float32"}
    ways["another scratchpad"] = Way(policies["float32"], PLAIN, seed=SEED + 1)
    observations = list(watch(policies["float32"], suite, count))
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        chunks: dict[str, list[ActionChunk]] = defaultdict(list)
        for index, seen in enumerate(observations):
            for name, way in ways.items():
                chunks[name].append(way.decide(seen, index))
                times[name].append(chunks[name][-1].timings["recurrence"])
    rows = {
        name: {"recurrence, ms": statistics.median(times[name]), **compare(chunks[name], chunks["plain"])}
        for name in ways
    }
    columns = ("way", *rows["plain"])
    title = f"{len(observations)} observations of {suite}"
    return Table(title, columns, tuple((name, *row.values()) for name, row in rows.items()))


@dataclass(frozen=True)
class Way:
    """One way to decide: a policy in some precision under a rule, with its scratchpads drawn from `seed`."""

    policy: RDVLAPolicy
    stop: StopRule
    seed: int = SEED

    def decide(self, observation: Observation, index: int) -> ActionChunk:
        """Decide on the observation number `index`."""
        return self.policy.infer(observation, Ask(self.stop, decision_seed(self.seed, index)))


def watch(policy: RDVLAPolicy, suite: str, count: int) -> Iterator[Observation]:
    """Yield `count` observations at which the policy decided, a few from the first episode of every task."""
    tasks = list_tasks(suite)
    per_task = -(-count // len(tasks))
    for task in tasks[: -(-count // per_task)]:
        env = make_env(suite, task.task_id)
        try:
            executor = Executor(policy, Synchronous(8), Ask(PLAIN, SEED))
            seen: list[Observation] = []

            def observe(env: Env = env, seen: list[Observation] = seen) -> Observation:
                seen.append(env.observe())
                return seen[-1]

            for turn in play(env, InitState(0)):
                turn.execute(executor.act(observe))
                if len(seen) == per_task:
                    break
        finally:
            env.close()
        yield from seen


def compare(found: list[ActionChunk], plain: list[ActionChunk]) -> dict[str, float]:
    """Return how far decisions are from the plain ones; actions are in the environment's units, gripper apart."""
    moves = np.stack([np.abs(a.actions - b.actions)[:, :-1] for a, b in zip(found, plain, strict=True)])
    grips = np.stack([a.actions[:, -1] != b.actions[:, -1] for a, b in zip(found, plain, strict=True)])
    depths = [(a.num_recurrences, b.num_recurrences) for a, b in zip(found, plain, strict=True)]
    return {
        "iterations": statistics.fmean(a for a, _ in depths),
        "stops elsewhere": statistics.fmean(a != b for a, b in depths),
        "mean change": float(moves.mean()),
        "largest change": float(moves.max()),
        "gripper changes": float(grips.mean()),
    }
