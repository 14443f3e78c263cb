"""One episode: a policy drives an environment until the task is solved or the steps are used up."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.base import Env
from rdvla.envs.episode import Turn, play
from rdvla.eval.protocol import Job
from rdvla.eval.records import StageRecord
from rdvla.execution import Executor
from rdvla.policy import Policy
from rdvla.types import ActionChunk, Observation


@runtime_checkable
class EnvBound(Protocol):
    """A policy that needs the environment itself, such as a scripted expert that reads privileged poses."""

    def bind(self, env: Env) -> None:
        """Serve `env` from now on; called once for every environment, before its first episode."""
        ...


class FrameSink(Protocol):
    """Takes the pictures of an episode (see `rdvla.eval.video.Film`)."""

    def wants(self, step: int) -> bool:
        """Return whether the picture after `step` control steps is wanted."""
        ...

    def add(self, image: NDArray[np.uint8], *, words: str, iterations: int, max_depth: int | None) -> None:
        """Add a picture `[H, W, 3]` taken while `words` are obeyed, and the decision with `iterations` executed."""
        ...


@dataclass(frozen=True)
class Rollout:
    """What happened in an episode; the fields are those of `rdvla.eval.records.EpisodeRecord`."""

    success: bool
    instruction: str
    num_stages: int
    stages: tuple[StageRecord, ...]
    steps: int
    iterations: tuple[int, ...]
    executed: tuple[int, ...]
    convergence: tuple[tuple[float, ...], ...]
    signals: Mapping[str, tuple[float | None, ...]]
    latency_ms: Mapping[str, tuple[float, ...]]
    wall_s: float


class _Clock:
    """Times rendering and deciding, one entry per decision."""

    def __init__(self, observe: Callable[[], Observation]) -> None:
        self._observe = observe
        self.observe_ms: list[float] = []
        self.decide_ms: list[float] = []

    def observe(self) -> Observation:
        start = time.perf_counter()
        observation = self._observe()
        self.observe_ms.append((time.perf_counter() - start) * 1000)
        return observation

    def act(self, executor: Executor) -> NDArray[np.float32]:
        decisions = len(executor.decisions)
        start = time.perf_counter()
        action = executor.act(self.observe)
        if len(executor.decisions) > decisions:
            shadow_ms = executor.decisions[-1].timings.get("trace", 0.0)
            self.decide_ms.append((time.perf_counter() - start) * 1000 - self.observe_ms[-1] - shadow_ms)
        return action


def run_episode(
    env: Env, policy: Policy, job: Job, film: FrameSink | None = None, decided: list[ActionChunk] | None = None
) -> Rollout:
    """Play one episode.

    The environment is rendered once per decision, not at all for a policy without cameras, and additionally for
    the pictures that `film` wants. Rendering does not touch the physics, so a filmed episode is the same episode.

    Args:
        env: simulates `job.task`.
        policy: decides; it is reset before the episode.
        job: the start, the rule and the seed.
        film: takes pictures, if any are wanted.
        decided: gets the decisions, oldest first, if they are wanted.

    Raises:
        SimulatorError: the simulator broke. Whatever the policy raises passes through.
    """
    start = time.perf_counter()
    rule, stand_still = job.rule, env.embodiment.stand_still
    executor = Executor(policy, rule.make_strategy(), rule.ask, delay=rule.delay, stand_still=stand_still)
    looks = bool(policy.metadata.cameras)
    clock = _Clock(lambda: turn.observe(pictures=looks))
    turns = play(env, job.start)
    executor.reset(job.seed)
    ends: dict[int, Turn] = {}
    for turn in turns:
        if turn.first and turn.step:
            executor.next_stage()
        action = clock.act(executor)
        if film is not None and film.wants(turn.step):
            _film(film, env, turn, executor)
        turn.execute(action)
        ends[turn.stage_index] = turn
    if film is not None:
        _film(film, env, turn, executor)
    if decided is not None:
        decided += executor.decisions
    return Rollout(
        success=turn.stages_solved == len(env.stages),
        instruction=env.stages[0].instruction if len(env.stages) == 1 else job.task.instruction,
        num_stages=len(env.stages),
        stages=_stages(list(ends.values())) if len(env.stages) > 1 else (),
        steps=turn.step + 1,
        iterations=tuple(chunk.num_recurrences for chunk in executor.decisions),
        executed=executor.executed,
        convergence=tuple(tuple(_round(value) for value in chunk.convergence) for chunk in executor.decisions),
        signals=_signals(executor.decisions),
        latency_ms=_latencies(executor, clock),
        wall_s=round(time.perf_counter() - start, 3),
    )


def _stages(ends: Sequence[Turn]) -> tuple[StageRecord, ...]:
    """Return the stages that were begun, from the last turn of each."""
    lengths = np.diff([turn.step for turn in ends], prepend=-1)
    return tuple(
        StageRecord(
            name=turn.stage.name, instruction=turn.stage.instruction, steps=int(length), solved=bool(turn.solved)
        )
        for turn, length in zip(ends, lengths, strict=True)
    )


def _film(film: FrameSink, env: Env, turn: Turn, executor: Executor) -> None:
    place = f"{turn.stage_index + 1} of {len(env.stages)}: " if len(env.stages) > 1 else ""
    film.add(
        env.frame(next(iter(env.embodiment.cameras))),
        words=place + turn.stage.instruction,
        iterations=executor.decisions[-1].num_recurrences,
        max_depth=executor.ask.stop.max_depth if executor.ask.stop else None,
    )


def _latencies(executor: Executor, clock: _Clock) -> dict[str, tuple[float, ...]]:
    stages = {"observe": clock.observe_ms, "decide": clock.decide_ms}
    reported = sorted({stage for chunk in executor.decisions for stage in chunk.timings})
    for stage in reported:
        stages[f"policy.{stage}"] = [chunk.timings.get(stage, 0.0) for chunk in executor.decisions]
    return {stage: tuple(round(float(value), 3) for value in values) for stage, values in stages.items()}


def _signals(decisions: Sequence[ActionChunk]) -> dict[str, tuple[float | None, ...]]:
    """Return every signal by decision; None where a decision does not have it, or it is no finite number."""
    names = dict.fromkeys(name for chunk in decisions for name in chunk.signals)
    columns = {name: [chunk.signals.get(name, np.nan) for chunk in decisions] for name in names}
    return {
        name: tuple(_round(value) if np.isfinite(value) else None for value in values)
        for name, values in columns.items()
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")
