"""What a table is made from: the runs of one policy, further runs by name, and how to play what they lack."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rdvla.errors import ConfigError
from rdvla.eval.protocol import EvalConfig, split_policy
from rdvla.eval.records import ErrorRecord
from rdvla.eval.summary import group_by
from rdvla.execution import SYNCHRONOUS
from rdvla.horizons import DEFAULT_HORIZON
from rdvla.report.load import RuleGroup, Run, Series, group_runs, ranges
from rdvla.stops import EXACT, StopRule

WHOLE = "all episodes"
"""What a column of all suites is called."""
DEPTH = 12
"""The paper's fixed depth: what other rules are compared with."""


@dataclass(frozen=True)
class Given:
    """Evaluations to make a table from.

    Attributes:
        series: everything about the policy; None if all runs have names.
        named: further runs by name, each of one policy.
    """

    series: Series | None
    named: Mapping[str, Series] = field(default_factory=dict)

    @property
    def by_name(self) -> dict[str, Series]:
        """Return the policy's runs, without a name, and the named ones."""
        return ({"": self.series} if self.series else {}) | dict(self.named)

    @property
    def all(self) -> list[Series]:
        """Return the same without names."""
        return list(self.by_name.values())

    def one(self, table: str) -> Series:
        """Return the policy's runs, for a table without names.

        Raises:
            ConfigError: there are none, or some have names.
        """
        if self.series is None or self.named:
            given = ", ".join(f"{name}=..." for name in self.named)
            raise ConfigError(f"the table '{table}' is about one policy; give its runs without names (found {given}).")
        return self.series


def sort_runs(runs: Sequence[Run]) -> Given:
    """Return runs by the names that the command line gave them; runs of the same name belong together.

    Raises:
        ConfigError: several policies where there must be one, or a name that a column of its own has already.
    """
    series = {name: _one_policy(name, members) for name, members in group_by(runs, lambda run: run.name).items()}
    given = Given(series.pop("", None), series)
    suites = {record.suite for record in given.series.records} if given.series else set()
    if taken := (suites | {WHOLE}) & given.named.keys():
        raise ConfigError(f"a column is called '{min(taken)}' already; give the runs {min(taken)}=... another name.")
    return given


def _one_policy(name: str, runs: Sequence[Run]) -> Series:
    found = group_runs([replace(run, name="") for run in runs])  # a table says the names itself, and the policies'
    if len(found) > 1:
        policies = "; ".join(f"{each.label} in {', '.join(run.folder.name for run in each.runs)}" for each in found)
        where = f"the runs called '{name}'" if name else "the runs without a name"
        raise ConfigError(f"{where} are of several policies ({policies}); a table shows one, others as NAME=RUN.")
    return found[0]


def rule_at(series: Series, depth: int, like: RuleGroup | None = None) -> RuleGroup | None:
    """Return the rule of a fixed depth, played in the same way as `like`; None if there is none.

    Of several it is the one that begins as `like` does, else the one that begins from noise.
    """
    found = [rule for rule in series.fixed if rule.depth == depth and (like is None or rule.way == like.way)]
    wanted = like.ask.warm_start if like is not None else "noise"
    return min(found, key=lambda rule: (rule.ask.warm_start != wanted, rule.ask.warm_start != "noise"), default=None)


def options(rule: RuleGroup) -> tuple[str, ...]:
    """Return how `rdvla eval` is asked for the thinking of a rule; nothing for what is left to the policy."""
    stop, ask = rule.stop, rule.ask
    words: list[str] = []
    if stop is not None and stop.depth is not None:
        words += "--depth", str(stop.depth)
    elif stop is not None:
        usual = StopRule(stop.name)
        words += "--stop", stop.name, "--delta", f"{stop.threshold:{EXACT}}"
        for name in ("min_depth", "max_depth", "check_every", "defer"):
            if (value := getattr(stop, name)) != getattr(usual, name):
                words += f"--{name.replace('_', '-')}", f"{value:{EXACT}}"
    if ask.budget_ms is not None:
        words += "--budget-ms", f"{ask.budget_ms:g}"
    if ask.warm_start != "noise":
        words += "--start", ask.warm_start
    return tuple(words)


def adaptive(series: Series) -> tuple[str, ...]:
    """Return how `rdvla eval` is asked for an adaptive rule: the one at hand, else one for a start."""
    return options(series.adaptive[0]) if series.adaptive else ("--stop", "action_mse")


def play(series: Series, suites: Sequence[str], *asked: str, like: RuleGroup | None = None) -> str:
    """Return the command that plays what is missing: `suites` under `asked`, from the starts of the runs at hand.

    Chunks are executed as under `like`, by default the first rule; other settings are those of the first run. Starts
    are of one kind, bundled states where the first run has them.
    """
    configs = [EvalConfig.build(run.config) for run in series.runs]
    config = configs[0]
    kind = "init_states" if config.init_states else "seeds"
    starts = _option({start for each in configs for start in getattr(each, kind)})
    chosen = dict(zip(asked[::2], asked[1::2], strict=True))
    way = (like or series.rules[0]).records[0].driven
    strategy = chosen.get("--strategy", SYNCHRONOUS if "--horizon" in chosen else way.strategy)
    usual = {"--horizon": way.horizon} if strategy == SYNCHRONOUS and way.horizon not in ("", DEFAULT_HORIZON) else {}
    if config.protocol or strategy != SYNCHRONOUS:  # a protocol may have another strategy of its own
        usual["--strategy"] = strategy
    usual |= {"--protocol": config.protocol} if config.protocol else {}
    if config.task_ids is not None and set(suites) <= set(config.suites):
        usual["--task-ids"] = _option(config.task_ids)
    if way.delay:
        usual["--delay"] = str(way.delay)
    if config.seed != EvalConfig.model_fields["seed"].default:
        usual["--seed"] = str(config.seed)
    option = f"--{kind.replace('_', '-')}"
    words = ["rdvla", "eval", *_source(config.policy), "--suite", ",".join(suites), option, starts]
    words += [word for pair in (usual | chosen).items() for word in pair]
    return f"`{shlex.join([*words, '--output', 'runs/NEW'])}`"


def _option(numbers: Iterable[int]) -> str:
    return ranges(numbers).replace(", ", ",")


def _source(policy: str) -> list[str]:
    """Return how `rdvla eval` is told a policy, which is named as `rdvla.policies.sources.choose_policy` does."""
    if "://" in policy or policy == "expert":
        return ["--policy", policy]
    if policy == "expert (noise)":
        return ["--policy", "expert", "--noise"]
    source, loaded = split_policy(policy)
    options = [option.partition("=") for option in loaded.split(", ") if loaded]
    words = [word for name, _, value in options for word in (f"--{name}", *([] if value == "True" else [value]))]
    return ["--checkpoint", source, *words]


def say_command(command: Sequence[str]) -> str:
    """Return a command line for people elsewhere, who cannot repeat it as it is: of absolute paths, the last name."""
    return shlex.join(re.sub(r"(^|=)/.*/([^/]+)/?$", r"\1\2", word) for word in command)


def unfinished(series: Series) -> list[str]:
    """Return what is still to be played of evaluations that ended early, and what could not be played, in words."""
    found = []
    for run in series.runs:
        config = EvalConfig.build(run.config)
        planned = run.num_tasks * len(config.starts) * len(config.rules)
        errors = sum(isinstance(record, ErrorRecord) for record in run.records)
        if errors or len(run.records) < planned:
            played = f"{len(run.records) - errors} of {max(planned, len(run.records))} episodes"
            found.append(f"'{run.folder.name}' has {played}; its command goes on: `{shlex.join(run.command)}`")
    return found
