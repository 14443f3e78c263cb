"""Reads the folders of evaluations and sorts their episodes by policy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rdvla.errors import ConfigError, RecordError
from rdvla.eval.protocol import split_policy
from rdvla.eval.records import RUN_FILE, AnyRecord, EpisodeRecord, latest, read_records
from rdvla.eval.runner import POLICY_FILE, require_schema
from rdvla.eval.summary import Summary, group_by, summarise_group
from rdvla.files import read_json
from rdvla.policy import Ask
from rdvla.stops import StopRule

NAMED = re.compile(r"(\w[\w.,+ -]*)=(.+)")


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes:
        folder: where it is.
        command: the command line that started it; empty if unknown.
        config: the settings (fields of `rdvla.eval.protocol.EvalConfig`).
        policy: what the policy said about itself (fields of `PolicyMetadata`); empty if no episode was played.
        records: its episodes.
        num_tasks: how many tasks it plays in the end; 0 if unknown.
        name: what the command line calls it; empty without a name.
    """

    folder: Path
    command: tuple[str, ...]
    config: Mapping[str, Any]
    policy: Mapping[str, Any]
    records: tuple[AnyRecord, ...]
    num_tasks: int = 0
    name: str = ""


@dataclass(frozen=True)
class RuleGroup:
    """All episodes of one policy under one rule.

    Attributes:
        label: names the rule among those of the policy, as the log has it.
        name: the same, for people: `depth 4`, `action_l2 < 0.001`.
        ask: how decisions were wanted, but for the seed.
        records: the episodes, errors included.
        summary: the episodes in numbers.
        folders: the evaluation that each is from, by `id` of the episode.
    """

    label: str
    name: str
    ask: Ask
    records: tuple[AnyRecord, ...]
    summary: Summary
    folders: Mapping[int, Path] = field(default_factory=dict, repr=False)

    @property
    def stop(self) -> StopRule | None:
        """Return the stopping rule; None left it to the policy."""
        return self.ask.stop

    @property
    def adaptive(self) -> bool:
        """Whether the decision itself says how long to think."""
        return self.stop is not None and self.depth is None

    @property
    def depth(self) -> int | None:
        """Return the depth of a fixed rule without a time limit."""
        return None if self.stop is None or self.ask.budget_ms is not None else self.stop.depth

    @property
    def played(self) -> list[EpisodeRecord]:
        """Return the episodes without the errors."""
        return [record for record in self.records if isinstance(record, EpisodeRecord)]

    @property
    def evaluations(self) -> set[Path]:
        """Return the folders of its episodes."""
        return {self.folders[id(record)] for record in self.records}

    @property
    def way(self) -> tuple[str, str]:
        """How chunks are executed, and the suites' protocol: all but the thinking."""
        return self.records[0].execution, self.records[0].protocol

    def within(self, *suites: str) -> "RuleGroup":
        """Return the same rule with the episodes of some suites."""
        kept = tuple(record for record in self.records if record.suite in suites)
        return replace(self, records=kept, summary=summarise_group(kept))

    def matched(self, other: "RuleGroup") -> list[tuple[EpisodeRecord, EpisodeRecord]]:
        """Return the episodes that both rules played: of the same task, start and seed."""
        mine, theirs = (
            {(record.suite, record.task_id, record.start, record.seed): record for record in rule.played}
            for rule in (self, other)
        )
        return [(record, theirs[key]) for key, record in mine.items() if key in theirs]


@dataclass(frozen=True)
class Series:
    """Everything known about one policy.

    Attributes:
        label: names the policy among those of the report.
        runs: the evaluations it appears in.
        records: their episodes; where two runs played the same one, the later run's.
        rules: the episodes by rule: fixed depths in ascending order, then the others.
    """

    label: str
    runs: tuple[Run, ...]
    records: tuple[AnyRecord, ...]
    rules: tuple[RuleGroup, ...] = field(default=())

    @property
    def identity(self) -> tuple[str, str, str]:
        """Return what is one policy's alone: what the command line calls its runs, its name and its fingerprint."""
        return _identity(self.runs[0])

    @property
    def fixed(self) -> list[RuleGroup]:
        """Return the rules of fixed depth with played episodes, shallowest first."""
        return [rule for rule in self.rules if rule.depth is not None and rule.summary.rate.n]

    @property
    def ladders(self) -> list[list[RuleGroup]]:
        """Return the fixed rules that differ in nothing but depth together, shallowest first; most depths first."""
        ladders = group_by(self.fixed, lambda rule: (rule.way, rule.ask.manner))
        return sorted(ladders.values(), key=len, reverse=True)

    @property
    def ladder(self) -> list[RuleGroup]:
        """Return the longest of these, the first of equals; none without a fixed rule."""
        return next(iter(self.ladders), [])

    @property
    def adaptive(self) -> list[RuleGroup]:
        """Return the adaptive rules with played episodes."""
        return [rule for rule in self.rules if rule.adaptive and rule.summary.rate.n]


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read evaluations.

    Raises:
        ConfigError: none or repeated folders.
        RecordError: a folder holds no evaluation, or a damaged or empty one.
    """
    if not folders:
        raise ConfigError("name at least one folder written by 'rdvla eval'.")
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise ConfigError("a folder is named twice.")
    return [_load(folder) for folder in folders]


def split_name(argument: str) -> tuple[str, Path]:
    """Return name (empty without one) and folder of `RUN` or `NAME=RUN`; a folder that is there is no name."""
    match = None if Path(argument).exists() else NAMED.fullmatch(argument)
    return (match[1], Path(match[2])) if match else ("", Path(argument))


def load_named(arguments: Sequence[str]) -> list[Run]:
    """Read the runs of a command line; see `split_name`.

    Raises:
        ConfigError: no run, or a repeated one.
        RecordError: a folder holds no evaluation, or a damaged one.
    """
    named = [split_name(argument) for argument in arguments]
    runs = load_runs([folder for _, folder in named])
    return [replace(run, name=name) for run, (name, _) in zip(runs, named, strict=True)]


def _load(folder: Path) -> Run:
    records = tuple(read_records(folder))
    if not records:
        raise RecordError(f"'{folder}' holds no finished episode yet.")
    run = _read_json(folder / RUN_FILE)
    require_schema(folder / RUN_FILE, run)
    command, config, tasks = run.get("command", []), run.get("config", {}), run.get("tasks", [])
    if not isinstance(command, list) or not isinstance(config, dict) or not isinstance(tasks, list):
        raise RecordError(f"'{folder / RUN_FILE}' is damaged; evaluate again into another folder.")
    policy = _read_json(folder / POLICY_FILE) if (folder / POLICY_FILE).exists() else {}
    return Run(folder, tuple(map(str, command)), config, policy, records, len(tasks))


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, RecordError, "evaluate again into another folder")


def group_runs(runs: Sequence[Run]) -> list[Series]:
    """Return the runs by policy: the same name with the same fingerprint is one policy, wherever it was read.

    What the command line names differently is kept apart, and labelled by that name.

    Raises:
        ConfigError: two runs hold the same episode, played with other versions or another renderer, or to another end.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    names = [given or _short(source) for given, source, _ in groups]
    series = []
    for label, members in zip(_told_apart(names, groups.values()), groups.values(), strict=True):
        _refuse_other_versions(members)
        same_game = group_by((r for run in members for r in run.records), lambda record: (record.seed, record.protocol))
        records = tuple(record for group in same_game.values() for record in latest(group))
        folders = {id(record): run.folder.resolve() for run in members for record in run.records}
        series.append(Series(label, tuple(members), records, _rules(records, folders)))
    return series


def _identity(run: Run) -> tuple[str, str, str]:
    source, digest = str(run.config.get("policy", run.folder)), str(run.config.get("policy_digest", ""))
    return run.name, _short(source) if digest else source, digest


def _short(policy: str) -> str:
    """Return a policy's name without the folders before it."""
    source, options = split_policy(policy)
    name = Path(source).name or source
    return f"{name} ({options})" if options else name


def _told_apart(names: Sequence[str], members: Iterable[Sequence[Run]]) -> list[str]:
    """Return names that differ: what is repeated gets as much of the path of its first run as it takes."""
    paths = [runs[0].folder.resolve().parts for runs in members]
    labels = list(names)
    for length in range(1, max(map(len, paths), default=0) + 1):
        repeated = [labels.count(label) > 1 for label in labels]
        ends = ["/".join(path[-length:]) for path in paths]
        labels = [
            f"{name} ({end})" if again else label
            for name, label, end, again in zip(names, labels, ends, repeated, strict=True)
        ]
    return labels


def _refuse_other_versions(runs: Sequence[Run]) -> None:
    """Refuse an episode that two runs played in two ways, of which only one would be shown."""
    seen: dict[tuple[Any, ...], tuple[Run, EpisodeRecord]] = {}
    for run in runs:
        for record in run.records:
            if not isinstance(record, EpisodeRecord):
                continue
            other, before = seen.setdefault((record.key, record.seed, record.protocol), (run, record))
            differing = say_mixed([before, record]) or _say_ends(before, record)
            if other is not run and differing:
                raise ConfigError(
                    f"'{other.folder}' and '{run.folder}' both hold {record.suite} task {record.task_id}, "
                    f"{record.start}, under {record.rule}, played differently ({differing}); name one of them."
                )


def _say_ends(first: EpisodeRecord, second: EpisodeRecord) -> str:
    """Return how two records of an episode ended if they did so differently, for people; else nothing."""
    same = (first.success, first.steps, first.iterations) == (second.success, second.steps, second.iterations)
    ends = [
        f"{'success' if each.success else 'failure'} after {each.steps} steps and {sum(each.iterations)} iterations"
        for each in (first, second)
    ]
    return "" if same else f"{ends[0]}, {ends[1]}"


def task_words(records: Sequence[AnyRecord]) -> str:
    """Return the instruction that a task's episodes share; where each drew one of several, the task's name in words."""
    sentences = {record.instruction for record in records}
    return sentences.pop() if len(sentences) == 1 else records[0].task.replace("_", " ")


def say_starts(records: Sequence[AnyRecord]) -> str:
    """Return where episodes began, for people: `initial states 0-9, placement seeds 5000`."""
    states = {record.init_state for record in records if record.init_state is not None}
    seeds = {record.placement_seed for record in records if record.placement_seed is not None}
    named = (("initial states", states), ("placement seeds", seeds))
    return ", ".join(f"{name} {ranges(numbers)}" for name, numbers in named if numbers)


def say_mixed(records: Sequence[AnyRecord]) -> str:
    """Return of what the episodes have several, for people: `seeds 7, 8; mujoco 3.3.2, 3.3.3`; empty if of nothing."""
    played = [record for record in records if isinstance(record, EpisodeRecord)]
    values = {"seeds": {str(record.seed) for record in played}}
    for record in played:
        for name, version in record.versions.items():
            values.setdefault(name, set()).add(version)
    return "; ".join(f"{name} {', '.join(sorted(found))}" for name, found in values.items() if len(found) > 1)


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers in ascending order, neighbours together: `0-3, 7`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def _rules(records: Sequence[AnyRecord], folders: Mapping[int, Path]) -> tuple[RuleGroup, ...]:
    further = [name for name in ("execution", "protocol") if len({getattr(record, name) for record in records}) > 1]

    def label(record: AnyRecord) -> str:
        facts = ", ".join(value for name in further if (value := getattr(record, name)))
        return f"{record.rule} / {facts}" if facts else record.rule

    groups = group_by(records, label)
    asks = {text: group[0].driven.ask for text, group in groups.items()}
    names = {text: _name(text, ask) for text, ask in asks.items()}
    plain = list(names.values())
    rules = [
        RuleGroup(
            text,
            names[text] if plain.count(names[text]) == 1 else text,
            asks[text],
            tuple(group),
            summarise_group(group),
            folders,
        )
        for text, group in groups.items()
    ]
    rules.sort(key=lambda rule: (rule.depth is None, rule.depth or 0))
    return tuple(rules)


def _name(label: str, ask: Ask) -> str:
    if ask.stop is None:
        return label.replace(" / ", ", ")
    further = re.sub(r"^(\d+)(?=$|, )", r"\1 actions", label.partition(" / ")[2])
    parts = (ask.stop.condition, ask.manner, further)
    return ", ".join(part for part in parts if part)
