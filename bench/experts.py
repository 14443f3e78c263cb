"""Measure the scripted experts: success per task over seeded random placements, with the demonstrations' noise.

Nothing is rendered. `OMP_NUM_THREADS=1 python bench/experts.py --suites libero_object,libero_spatial --workers 2`
"""

import argparse
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from rdvla.collect.demonstrators import make_demonstrator
from rdvla.envs.libero.env import LiberoEnv
from rdvla.envs.libero.suites import list_tasks
from rdvla.errors import RDVLAError
from rdvla.eval.intervals import wilson


@dataclass(frozen=True)
class TaskResult:
    """What became of a task's episodes: the length of each solved one, and why the others were not."""

    suite: str
    task_id: int
    name: str
    lengths: tuple[int, ...]
    failures: tuple[str, ...]
    grasps: Counter[str]
    seconds: float


def measure(suite: str, task_id: int, seeds: range) -> TaskResult:
    started = time.perf_counter()
    lengths, failures = [], []
    grasps: Counter[str] = Counter()
    with LiberoEnv(suite, task_id, camera_size=64) as env:
        for seed in seeds:
            try:
                env.reset(seed=seed)
                expert = make_demonstrator(env.task)
                expert.reset(env, seed=seed)
                grasps[_first_grasp(expert.expert)] += 1
                solved_at = next((n for n in range(1, env.task.max_steps + 1) if env.step(expert.act(env).executed)), 0)
            except RDVLAError as error:
                failures.append(f"{seed}: {error}")
                continue
            if solved_at:
                lengths.append(solved_at)
            else:
                failures.append(f"{seed}: not solved")
        return TaskResult(
            suite,
            task_id,
            env.task.name,
            tuple(lengths),
            tuple(failures),
            grasps,
            time.perf_counter() - started,
        )


def _first_grasp(expert: Any) -> str:
    return getattr(getattr(expert.skill, "grasp", None), "label", "-")


def print_result(result: TaskResult) -> None:
    count = len(result.lengths) + len(result.failures)
    mean = sum(result.lengths) / len(result.lengths) if result.lengths else float("nan")
    longest = max(result.lengths, default=0)
    grasps = ", ".join(f"{label} x{n}" for label, n in result.grasps.most_common())
    print(
        f"{result.suite:15} {result.task_id:2d} {len(result.lengths):3d}/{count:<3d} mean {mean:5.1f} max {longest:3d}"
        f"  {result.seconds:5.0f} s  {result.name}  [{grasps}]",
        *(f"\n    {failure}" for failure in result.failures),
        flush=True,
    )


def print_table(results: list[TaskResult]) -> None:
    """Print the Markdown table of the documentation, with a line for every suite."""
    print("\n| suite | task | | n | solved | 95 % interval | mean steps |\n|---|---|---|---|---|---|---|")
    for suite in dict.fromkeys(result.suite for result in results):
        own = [result for result in results if result.suite == suite]
        for result in own:
            print(_row(suite, str(result.task_id), result.name.replace("_", " "), [result]))
        print(_row(f"**{suite}**", "all", "", own))


def _row(suite: str, task: str, name: str, results: list[TaskResult]) -> str:
    lengths = [length for result in results for length in result.lengths]
    rate = wilson(len(lengths), len(lengths) + sum(len(result.failures) for result in results))
    mean = f"{sum(lengths) / len(lengths):.0f}" if lengths else "-"
    interval = f"{rate.low:.0%} - {rate.high:.0%}"
    return f"| {suite} | {task} | {name} | {rate.n} | {rate.successes} | {interval} | {mean} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", default="libero_object,libero_spatial")
    parser.add_argument("--task-ids", default="", help="comma-separated; all of each suite by default")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    wanted = {int(number) for number in args.task_ids.split(",") if number}
    seeds = range(args.first_seed, args.first_seed + args.episodes)
    jobs = [
        (suite, task.task_id)
        for suite in args.suites.split(",")
        for task in list_tasks(suite)
        if not wanted or task.task_id in wanted
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        futures = [pool.submit(measure, suite, task_id, seeds) for suite, task_id in jobs]
        results = []
        for future in futures:
            results.append(future.result())
            print_result(results[-1])
    print_table(results)


if __name__ == "__main__":
    main()
