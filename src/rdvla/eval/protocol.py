"""What an evaluation is: which tasks, from which initial states, under which rules, with which seed.

An `EvalConfig` and the tasks of its suites determine a list of `Job`s, one per episode. Nothing here starts a
simulator or loads a policy.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from pydantic import model_validator

from rdvla.config import Config
from rdvla.envs.base import TaskSpec
from rdvla.errors import ConfigError, suggest
from rdvla.horizons import make_horizon
from rdvla.stops import StopRule

MAX_RANGE = 100_000
"""Numbers in one range such as 0-9: more are a slip of the hand."""

POLICY_DEFAULT = "default"
"""Label of the rule that leaves the depth to the policy."""


@dataclass(frozen=True)
class Rule:
    """How a policy is driven: when it stops thinking, and how much of a chunk is executed.

    Attributes:
        stop: the stopping rule; None leaves it to the policy.
        horizon: a number of actions or a name of `rdvla.horizons.HORIZONS`.
    """

    stop: StopRule | None
    horizon: str

    @property
    def label(self) -> str:
        """Return a name that tells apart all stopping rules, e.g. `fixed(4)` or `action_l2(0.001, max 32, min 2)`."""
        if self.stop is None:
            return POLICY_DEFAULT
        label = str(self.stop)
        if self.stop.name == "fixed":
            return label
        extras = f", min {self.stop.min_depth}" if self.stop.min_depth > 1 else ""
        extras += f", every {self.stop.check_every}" if self.stop.check_every > 1 else ""
        return label.removesuffix(")") + extras + ")"


class EvalConfig(Config):
    """Everything that decides the outcome of an evaluation (so a resumed one must agree in all of it).

    Attributes:
        policy: where the policy comes from: a checkpoint folder, `expert`, or `ws://host:port`.
        policy_digest: fingerprint of the checkpoint's files; empty if there are none.
        suites: benchmark suites.
        task_ids: tasks of every suite; None takes all.
        init_states: indices of bundled initial states, one episode each.
        stops: stopping rules; None among them leaves the depth to the policy.
        horizons: execution horizons; every rule runs under every horizon.
        seed: seeds the scratchpads (see `episode_seed`).
        videos: how many initial states per task and rule to film.
    """

    policy: str
    policy_digest: str = ""
    suites: tuple[str, ...]
    task_ids: tuple[int, ...] | None = None
    init_states: tuple[int, ...]
    stops: tuple[StopRule | None, ...] = (None,)
    horizons: tuple[str, ...] = ("5",)
    seed: int = 7
    videos: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("suites", "init_states", "stops", "horizons"):
            values = getattr(self, name)
            if not values:
                raise ConfigError(f"{name} must name at least one.")
            if len(set(values)) != len(values):
                raise ConfigError(f"{name} repeats a value: {', '.join(map(str, values))}.")
        for horizon in self.horizons:
            make_horizon(horizon)
        if min(self.init_states) < 0:
            raise ConfigError(f"init_states must be at least 0, found {min(self.init_states)}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, found {self.seed}.")
        if self.videos < 0:
            raise ConfigError(f"videos must be at least 0, found {self.videos}.")
        return self

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return every combination of stopping rule and horizon."""
        return tuple(Rule(stop, horizon) for stop, horizon in product(self.stops, self.horizons))


@dataclass(frozen=True)
class Job:
    """One episode to play.

    Attributes:
        task: the task.
        init_state: index of the bundled initial state.
        rule: how the policy is driven.
        run_seed: the evaluation's seed.
        video: whether to film it.
    """

    task: TaskSpec
    init_state: int
    rule: Rule
    run_seed: int
    video: bool = False

    @property
    def key(self) -> tuple[str, int, int, str, str]:
        """Return what identifies the episode within an evaluation."""
        return (self.task.suite, self.task.task_id, self.init_state, self.rule.label, self.rule.horizon)

    @property
    def seed(self) -> int:
        """Return the episode's seed: equal for all rules, so rules are compared on the same scratchpads."""
        return episode_seed(self.run_seed, self.task.suite, self.task.task_id, self.init_state)


def episode_seed(run_seed: int, suite: str, task_id: int, init_state: int) -> int:
    """Return a 63-bit seed for one episode that depends on nothing but the arguments."""
    entropy = [run_seed, zlib.crc32(suite.encode()), task_id, init_state]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def plan(config: EvalConfig, tasks: Mapping[str, Sequence[TaskSpec]]) -> list[Job]:
    """Return the episodes of an evaluation, task by task, then state by state, then rule by rule.

    Args:
        config: the evaluation.
        tasks: all tasks of every suite that may be named.

    Raises:
        ConfigError: an unknown suite, or a task id that a suite does not have.
    """
    jobs = []
    for suite in config.suites:
        if suite not in tasks:
            raise ConfigError(f"unknown suite '{suite}'.{suggest(suite, tasks)}")
        for task in select_tasks(tasks[suite], config.task_ids):
            for (position, init_state), rule in product(enumerate(config.init_states), config.rules):
                jobs.append(Job(task, init_state, rule, config.seed, video=position < config.videos))
    return jobs


def select_tasks(tasks: Sequence[TaskSpec], task_ids: Sequence[int] | None) -> list[TaskSpec]:
    """Return the tasks with these ids, in that order, or all of them for None.

    Raises:
        ConfigError: an id that the suite does not have.
    """
    if task_ids is None:
        return list(tasks)
    by_id = {task.task_id: task for task in tasks}
    for task_id in task_ids:
        if task_id not in by_id:
            raise ConfigError(
                f"suite '{tasks[0].suite}' has no task {task_id}: its task ids are {min(by_id)}-{max(by_id)}."
            )
    return [by_id[task_id] for task_id in task_ids]


def check_init_states(
    config: EvalConfig, tasks: Mapping[str, Sequence[TaskSpec]], count: Callable[[str, int], int]
) -> None:
    """Check that every chosen task has the initial states that `config` names.

    Args:
        config: the evaluation.
        tasks: all tasks of its suites.
        count: `(suite, task_id) -> number of bundled initial states`.

    Raises:
        ConfigError: a task has fewer, or there is no such task.
    """
    highest = max(config.init_states)
    for suite in config.suites:
        for task in select_tasks(tasks[suite], config.task_ids):
            check_init_state(highest, task, count(suite, task.task_id))


def check_init_state(init_state: int, task: TaskSpec, available: int) -> None:
    """Check that a task with `available` initial states has this one.

    Raises:
        ConfigError: it has fewer.
    """
    if init_state >= available:
        raise ConfigError(
            f"init-states names {init_state}, but {task.suite} task {task.task_id} ({task.name}) has {available} "
            f"initial states: 0-{available - 1}."
        )


def parse_indices(text: str, *, field: str) -> tuple[int, ...]:
    """Read whole numbers and ranges, e.g. `3,9` or `0-4,10-19` (both ends included).

    Raises:
        ConfigError: not numbers, a range that runs backwards or is absurdly long, or a repeated number. The message
            names `field`.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"{field} '{text}': '{part}' is not a whole number or a range such as 10-19.")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ConfigError(f"{field} '{text}': the range '{part}' runs backwards; write {high}-{low}.")
        if high - low >= MAX_RANGE:
            raise ConfigError(f"{field} '{text}': the range '{part}' is longer than {MAX_RANGE:,} numbers.")
        numbers.extend(range(low, high + 1))
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{field} '{text}' repeats a number.")
    return tuple(numbers)


def parse_depths(text: str) -> tuple[StopRule, ...]:
    """Read depths such as `1,2,4,8,12` as rules of fixed depth.

    Raises:
        ConfigError: not whole numbers of at least 1.
    """
    depths = parse_indices(text, field="depth")
    if 0 in depths:
        raise ConfigError(f"depth '{text}': a policy must iterate at least once; the smallest depth is 1.")
    return tuple(StopRule.fixed(depth) for depth in depths)


def parse_names(text: str, *, field: str) -> tuple[str, ...]:
    """Read a comma-separated list of names.

    Raises:
        ConfigError: an empty or repeated name.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise ConfigError(f"{field} '{text}' must be a list of different names, such as a,b.")
    return names


def choose_init_states(episodes: int | None, init_states: str | None) -> tuple[int, ...]:
    """Return the initial states: those named by `init_states` (at most `episodes` of them), else 0..`episodes` - 1.

    Args:
        episodes: episodes per task and rule; None means 10, or as many as `init_states` names.
        init_states: e.g. `10-19`; None starts from 0.

    Raises:
        ConfigError: episodes below 1, or more of them than states named.
    """
    if episodes is not None and episodes < 1:
        raise ConfigError(f"episodes must be at least 1, found {episodes}.")
    if init_states is None:
        return tuple(range(10 if episodes is None else episodes))
    states = parse_indices(init_states, field="init-states")
    if episodes is not None and episodes > len(states):
        raise ConfigError(f"episodes ({episodes}) exceeds the {len(states)} states in init-states '{init_states}'.")
    return states[:episodes]
