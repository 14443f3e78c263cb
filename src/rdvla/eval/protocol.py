"""What an evaluation is: which tasks, from which starts, under which rules, with which seed.

An `EvalConfig` and the tasks of its suites determine a list of `Job`s, one per episode. Nothing here starts a
simulator or loads a policy.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Self

import numpy as np
from pydantic import model_validator

from rdvla.config import Config, require_distinct
from rdvla.envs.base import InitState, Seed, Start, Suite, TaskSpec
from rdvla.errors import ConfigError, suggest
from rdvla.execution import SYNCHRONOUS, Strategy, execution_label, make_strategy
from rdvla.horizons import DEFAULT_HORIZON, make_horizon
from rdvla.policy import Ask, WarmStart
from rdvla.stops import StopRule

POLICY_DEFAULT = "default"
"""Label of the rule that leaves the depth to the policy."""


@dataclass(frozen=True)
class Rule:
    """How a policy is driven: when it stops thinking, and how its chunks are executed.

    Attributes:
        stop: the stopping rule; None leaves it to the policy.
        horizon: a number of actions or a name of `rdvla.horizons.HORIZONS`; empty where the strategy has none.
        strategy: how chunks are executed (`rdvla.execution.make_strategy`).
        delay: control steps from question to answer.
        budget_ms: time for a decision; None means no limit.
        warm_start: where the scratchpads of decisions begin (`rdvla.policy.WARM_STARTS`).
        trace_depth: iterations of the trace that is kept of every decision; None keeps none. No part of the label: the
            episode is the same.
    """

    stop: StopRule | None
    horizon: str
    strategy: str = SYNCHRONOUS
    delay: int = 0
    budget_ms: float | None = None
    warm_start: WarmStart = "noise"
    trace_depth: int | None = None

    @property
    def label(self) -> str:
        """Return a name that tells apart all ways to think, e.g. `fixed(4)` or `action_l2(0.001, max 32, min 2)`."""
        stop = str(self.stop or POLICY_DEFAULT)
        return f"{stop}, {self.ask.manner}" if self.ask.manner else stop

    @property
    def ask(self) -> Ask:
        """Return how every decision is wanted."""
        return Ask(self.stop, budget_ms=self.budget_ms, warm_start=self.warm_start, trace_depth=self.trace_depth)

    @property
    def execution(self) -> str:
        """Return a name that tells apart all ways to execute chunks, e.g. `5` or `background:4, delay 3`."""
        return execution_label(self.strategy, self.horizon, self.delay)

    def make_strategy(self) -> Strategy:
        """Return the strategy, new for every episode."""
        return make_strategy(self.strategy, make_horizon(self.horizon) if self.horizon else None)


DRIVEN = tuple(each.name for each in fields(Rule) if each.name != "trace_depth")
"""What a record says of a rule, under the same names: everything that can change an episode."""


class EvalConfig(Config):
    """Everything that decides the outcome of an evaluation (so a resumed one must agree in all of it).

    Attributes:
        policy: where the policy comes from: a checkpoint folder, `expert`, or `ws://host:port`.
        policy_digest: fingerprint of the checkpoint's files; empty if there are none.
        suites: benchmark suites.
        task_ids: tasks of every suite; None takes all.
        init_states: indices of bundled initial states, one episode each.
        seeds: seeds of the environment's own sampler, one episode each; given instead of `init_states`.
        protocol: the rules of the suites (`rdvla.envs.Suite.protocol`); empty takes the usual ones.
        stops: stopping rules; None among them leaves the depth to the policy.
        budgets_ms: time for a decision, None for no limit; every rule runs with every one.
        horizons: execution horizons of the strategy `synchronous`; every rule runs under every horizon.
        strategies: how chunks are executed (`rdvla.execution.make_strategy`); every rule runs under every one.
        delays: control steps from question to answer, injected; every rule runs under every one.
        warm_starts: where the scratchpads of decisions begin; every rule runs with every one.
        trace_depth: iterations of the traces that are kept, as many as any rule may take; None keeps none.
        seed: seeds the scratchpads (see `episode_seed`).
        videos: how many starts per task and rule to film.
    """

    policy: str
    policy_digest: str = ""
    suites: tuple[str, ...]
    task_ids: tuple[int, ...] | None = None
    init_states: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    protocol: str = ""
    stops: tuple[StopRule | None, ...] = (None,)
    budgets_ms: tuple[float | None, ...] = (None,)
    warm_starts: tuple[WarmStart, ...] = ("noise",)
    horizons: tuple[str, ...] = (DEFAULT_HORIZON,)
    strategies: tuple[str, ...] = (SYNCHRONOUS,)
    delays: tuple[int, ...] = (0,)
    trace_depth: int | None = None
    seed: int = 7
    videos: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.init_states) == bool(self.seeds):
            raise ConfigError("an evaluation starts its episodes either from init_states or from seeds; give one.")
        for name in (
            "suites",
            "init_states",
            "seeds",
            "stops",
            "budgets_ms",
            "warm_starts",
            "horizons",
            "strategies",
            "delays",
        ):
            values = getattr(self, name)
            if not values and name not in ("init_states", "seeds"):
                raise ConfigError(f"{name} must name at least one.")
            require_distinct(name, values)
        require_distinct("task_ids", self.task_ids or ())
        for horizon in self.horizons:
            make_horizon(horizon)
        for budget_ms in self.budgets_ms:
            Ask(budget_ms=budget_ms, trace_depth=self.trace_depth)
        for strategy in self.strategies:
            make_strategy(strategy)
        for name in ("init_states", "seeds", "delays"):
            if min(getattr(self, name), default=0) < 0:
                raise ConfigError(f"{name} must be at least 0, found {min(getattr(self, name))}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, found {self.seed}.")
        if self.videos < 0:
            raise ConfigError(f"videos must be at least 0, found {self.videos}.")
        return self

    @property
    def starts(self) -> tuple[Start, ...]:
        """Return where the episodes of a task start."""
        return (*map(InitState, self.init_states), *map(Seed, self.seeds))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return every combination of stopping rule, strategy with its horizons, and delay."""
        executions = [
            (horizon, strategy)
            for strategy in self.strategies
            for horizon in (self.horizons if strategy == SYNCHRONOUS else ("",))
        ]
        ways = product(self.stops, executions, self.delays, self.budgets_ms, self.warm_starts)
        return tuple(
            Rule(stop, *execution, delay, budget, warm_start, self.trace_depth)
            for stop, execution, delay, budget, warm_start in ways
        )


@dataclass(frozen=True)
class Job:
    """One episode to play.

    Attributes:
        task: the task.
        start: where the episode starts.
        rule: how the policy is driven.
        run_seed: the evaluation's seed.
        video: whether to film it.
        protocol: the rules of its suite; empty for the usual ones.
    """

    task: TaskSpec
    start: Start
    rule: Rule
    run_seed: int
    video: bool = False
    protocol: str = ""

    @property
    def key(self) -> tuple[str, int, Start, str, str]:
        """Return what identifies the episode within an evaluation."""
        return (self.task.suite, self.task.task_id, self.start, self.rule.label, self.rule.execution)

    @property
    def task_key(self) -> tuple[str, int]:
        """Return suite and task id: jobs with the same share an environment."""
        return (self.task.suite, self.task.task_id)

    def __str__(self) -> str:
        return f"{self.task.suite} task {self.task.task_id}, {self.start}, {self.rule.label}"

    @property
    def seed(self) -> int:
        """Return the episode's seed: equal for all rules, so rules are compared on the same scratchpads."""
        return episode_seed(self.run_seed, self.task.suite, self.task.task_id, self.start)


def split_policy(policy: str) -> tuple[str, str]:
    """Return the source in `EvalConfig.policy`, and how it was loaded, e.g. `precision=int8`; empty if as it is."""
    loaded = re.fullmatch(r"(.+) \((\w+=.+)\)", policy)
    return (loaded[1], loaded[2]) if loaded else (policy, "")


def episode_seed(run_seed: int, suite: str, task_id: int, start: Start) -> int:
    """Return a 63-bit seed for one episode that depends on nothing but the arguments."""
    entropy = [run_seed, zlib.crc32(suite.encode()), task_id]
    entropy += [start.index] if isinstance(start, InitState) else [start.value, 1]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def plan(config: EvalConfig, suites: Mapping[str, Suite]) -> list[Job]:
    """Return the episodes of an evaluation, task by task, then start by start, then rule by rule.

    Args:
        config: the evaluation.
        suites: every suite that may be named.

    Raises:
        ConfigError: an unknown suite, a task id that a suite does not have, or a rule that goes deeper than the traces.
    """
    for stop in config.stops:
        if config.trace_depth is not None and stop is not None and stop.max_depth > config.trace_depth:
            raise ConfigError(
                f"trace_depth is {config.trace_depth}, but {stop} may take {stop.max_depth} iterations; trace as deep."
            )
    jobs = []
    for suite in config.suites:
        if suite not in suites:
            raise ConfigError(f"unknown suite '{suite}'.{suggest(suite, suites)}")
        protocol = suites[suite].protocol
        for task in suites[suite].select(config.task_ids):
            for (position, start), rule in product(enumerate(config.starts), config.rules):
                filmed = position < config.videos
                jobs.append(Job(task, start, rule, config.seed, filmed, protocol))
    return jobs


def check_init_states(suite: Suite, task_ids: Sequence[int] | None, init_states: Sequence[int], asked: str) -> None:
    """Check that every chosen task has the initial states that are asked for.

    Args:
        suite: where the tasks are.
        task_ids: which of them; None stands for all.
        init_states: indices of bundled states.
        asked: who asks for the highest of them, for the message, e.g. `--init-states names 50`.

    Raises:
        ConfigError: a task has fewer, or there is no such task.
    """
    for task in suite.select(task_ids):
        available = suite.num_init_states(task.task_id) if init_states else 0
        if init_states and not available:
            raise ConfigError(
                f"{asked}, but {task.suite} has no bundled initial states; it is played from seeds (--seeds)."
            )
        if max(init_states, default=-1) >= available:
            raise ConfigError(
                f"{asked}, but {task.suite} task {task.task_id} ({task.name}) has {available} initial states: "
                f"0-{available - 1}."
            )
