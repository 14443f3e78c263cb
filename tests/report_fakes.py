"""Writes evaluation folders with made-up but plausible episodes, without playing any."""

import json
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from rdvla.envs import find_suite
from rdvla.envs.base import Suite, TaskSpec
from rdvla.eval.protocol import EvalConfig, plan
from rdvla.eval.records import EPISODES_FILE, RUN_FILE, EpisodeLog, EpisodeRecord, ErrorRecord, StageRecord
from rdvla.eval.runner import POLICY_FILE
from rdvla.eval.video import Film
from rdvla.files import write_atomically, write_json
from rdvla.stops import StopRule

WORDS = [
    "alphabet soup",
    "cream cheese",
    "salad dressing",
    "bbq sauce",
    "ketchup",
    "tomato sauce",
    "butter",
    "milk",
    "orange juice",
    "pudding",
]


def tasks(suite, n):
    where = "in the basket" if suite == "libero_object" else "on the plate"
    what = [f"pick up the {WORDS[i % len(WORDS)]} and place it {where}" for i in range(n)]
    return [TaskSpec(suite, i, f"{suite}_{i}", what[i], 280) for i in range(n)]


@dataclass(frozen=True)
class MadeUpSuite(Suite):
    size: int = 0

    def tasks(self):
        return tasks(self.name, self.size)

    def num_init_states(self, task_id):
        return 50

    def make_env(self, task_id, *, camera_size=None):
        raise NotImplementedError


def write_run(folder, *, stops, suites=("libero_object",), n_tasks=4, episodes=5, skill=0.95, errors=0, **settings):
    """Write a folder as `evaluate` does; `skill` is the success rate at great depth."""
    folder = Path(folder)
    settings = {"policy": "checkpoints/tiny", "policy_digest": "0123456789abcdef"} | settings
    config = EvalConfig.build(settings | {"suites": suites, "init_states": tuple(range(episodes)), "stops": stops})
    all_suites = {suite: MadeUpSuite(suite, size=n_tasks) for suite in suites}
    with EpisodeLog(folder) as log:
        for number, job in enumerate(plan(config, all_suites)):
            log.append(_record(folder, job, number, skill, broken=number < errors))
    content = {
        "schema": 1,
        "command": ["rdvla", "eval", "--suite", ",".join(suites)],
        "config": config.model_dump(mode="json"),
        "tasks": [],
    }
    (folder / RUN_FILE).write_text(json.dumps(content))
    policy = {
        "name": "tiny",
        "cameras": ["primary", "wrist"],
        "state_dim": 8,
        "action_dim": 7,
        "chunk_size": 8,
        "extra": {"step": 9000},
    }
    (folder / POLICY_FILE).write_text(json.dumps(policy))
    return folder


def _record(folder, job, number, skill, *, broken):
    rng = np.random.default_rng([job.seed % 2**32, zlib.crc32(job.rule.label.encode())])
    stop = job.rule.stop
    fixed = stop is None or stop.name == "fixed"
    identity = {
        "suite": job.task.suite, "task": job.task.name, "task_id": job.task.task_id,
        "instruction": job.task.instruction, "init_state": job.start.index, "seed": job.run_seed,
        "episode_seed": job.seed, "rule": job.rule.label, "stop": stop, "horizon": job.rule.horizon,
        "warm_start": job.rule.warm_start, "strategy": job.rule.strategy, "delay": job.rule.delay,
        "depth": stop.max_depth if stop is not None and fixed else None, "attempts": 1,
        "versions": {"rdvla": "0.1.0", "mujoco": "3.3.2", "torch": "2.13.0"},
    }  # fmt: skip
    if broken:
        return ErrorRecord(**(identity | {"attempts": 3}), error="the worker process died (signal 11)")
    n = int(rng.integers(16, 34))
    hump = np.exp(-(((np.arange(n) / n) - 0.45) ** 2) / 0.02)
    depth = stop.max_depth if stop is not None and fixed else 6
    drawn = 3 + rng.poisson(0.6 + 2.4 * hump + 0.3 * job.task.task_id)
    iterations = [depth] * n if fixed else [int(min(value, stop.max_depth)) for value in drawn]
    traces = [() if fixed else _trace(rng, k) for k in iterations]
    reach = np.mean(iterations)
    success = bool(rng.random() < skill * (1 - np.exp(-(reach**1.3) / (2.2 + 0.25 * job.task.task_id))))
    recurrence = [1.4 * k + float(rng.gamma(2, 0.4)) for k in iterations]
    video = None
    if job.video:
        video = f"videos/{number}.mp4"
        film = Film(20)
        for k in range(12):
            image = np.full((64, 64, 3), 60 + 10 * k, dtype=np.uint8)
            film.add(
                image, words=job.task.instruction, iterations=iterations[k], max_depth=stop.max_depth if stop else None
            )
        write_atomically(folder / video, film.encode())
    return EpisodeRecord(
        **identity, success=success, steps=5 * n, iterations=tuple(iterations), executed=(5,) * n,
        convergence=tuple(traces), video=video, wall_s=6.5,
        latency_ms={
            "observe": tuple(float(v) for v in rng.normal(110, 9, n)),
            "decide": tuple(18 + r for r in recurrence),
            "policy.encode": (17.0,) * n, "policy.recurrence": tuple(recurrence),
        },
    )  # fmt: skip


def _trace(rng, iterations):
    falling = 0.03 * np.exp(-np.arange(1, iterations) * (3.4 / (iterations - 1)))
    return tuple(float(v) for v in falling * rng.lognormal(0, 0.25, iterations - 1))


DEPTHS = tuple(StopRule.fixed(depth) for depth in (1, 2, 4, 8, 12, 32))
ADAPTIVE = StopRule("action_l2", 1e-3, max_depth=32)


GOALS = ("open_drawer", "close_drawer", "lift_red_block_table", "stack_block", "turn_on_led")


DEPTH_8 = (StopRule.fixed(8),)


def write_chains(folder, solved, *, stops=DEPTH_8, protocol="official", iterations=(), **starts):
    """Write a run in which chain k solves `solved[k]` goals in a row, under every rule.

    Two decisions a stage, each with `iterations[stage]` (else 8); synchronous.
    """
    starts = starts or {"init_states": tuple(range(len(solved)))}
    config = EvalConfig(policy="checkpoints/c", suites=("calvin_d",), stops=stops, protocol=protocol, **starts)
    jobs = plan(config, {"calvin_d": find_suite("calvin_d", protocol)})
    with EpisodeLog(folder) as log:
        for job, (count, _) in zip(jobs, product(solved, stops), strict=True):
            log.append(_chain(job, count, iterations))
    write_json(folder / "run.json", {"command": ["rdvla"], "config": config.model_dump(mode="json"), "tasks": []})
    return folder


def _chain(job, count, iterations):
    stages = [StageRecord(name=goal, instruction=f"do {goal}", steps=40, solved=True) for goal in GOALS[:count]]
    stages += [StageRecord(name=g, instruction=f"do {g}", steps=360, solved=False) for g in GOALS[count : count + 1]]
    counts = [count for _, count in zip(stages, (*iterations, *[8] * 5), strict=False) for _ in range(2)]
    executed = [stage.steps // 2 for stage in stages for _ in range(2)]
    return EpisodeRecord(
        suite="calvin_d", task="chain", task_id=0, instruction="five", protocol=job.protocol, seed=7,
        init_state=getattr(job.start, "index", None), placement_seed=getattr(job.start, "value", None),
        episode_seed=job.seed, rule=job.rule.label, stop=job.rule.stop, depth=job.rule.stop.max_depth, horizon="5",
        attempts=1, versions={}, success=count == 5, num_stages=5, stages=tuple(stages), steps=sum(executed),
        iterations=tuple(counts), executed=tuple(executed), convergence=((),) * len(counts),
        latency_ms={"decide": (20.0,) * len(counts)}, wall_s=3.0,
    )  # fmt: skip


def edit(folder, change):
    """Replace every record of a run (a mapping) by what `change` makes of it."""
    path = folder / EPISODES_FILE
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(record)) + "\n" for record in records))
    return folder


def solve(folder, success):
    """Let `success` of a record (a mapping) say which episodes of a run were solved."""
    return edit(folder, lambda record: record | {"success": success(record)})
