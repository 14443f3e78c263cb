"""The durable log of an evaluation: one JSON line per episode, safe against kills at any moment.

`EpisodeLog` is the only writer of `episodes.jsonl`. A line that was being written when the process died is cut off
when the log is opened again; a damaged line anywhere else is an error.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError, model_validator

from rdvla.config import Config
from rdvla.envs.base import InitState, Seed, Start
from rdvla.errors import ConfigError, RDVLAError, RecordError
from rdvla.eval.protocol import DRIVEN, Rule, split_policy
from rdvla.execution import SYNCHRONOUS
from rdvla.files import append_line, cut_torn_line, owned_folder, read_json
from rdvla.policy import WarmStart
from rdvla.stops import StopRule

EPISODES_FILE, RUN_FILE = "episodes.jsonl", "run.json"

_ELSEWHERE = ("device", "revision", "compile")
"""How a checkpoint is loaded that makes no other policy of it; which revision it is, its fingerprint says."""

Key = tuple[str, int, Start, str, str]


class _Identity(Config):
    """Which episode a record is about.

    Attributes:
        suite: benchmark suite.
        task: the benchmark's name of the task.
        task_id: index of the task in its suite.
        instruction: the sentence given to the policy.
        init_state: index of the bundled initial state, or None.
        placement_seed: seed of the environment's own sampler, or None; exactly one of both is given.
        protocol: the rules of the suite; empty for the usual ones.
        seed: the evaluation's seed.
        episode_seed: the seed of the episode's scratchpads.
        rule: label of the stopping rule (`rdvla.eval.protocol.Rule.label`).
        stop: the stopping rule; None left it to the policy.
        depth: iterations of a fixed rule, else None.
        horizon: the execution horizon; empty where the strategy has none.
        strategy: how chunks were executed.
        delay: control steps from question to answer.
        budget_ms: time for a decision; None means no limit.
        warm_start: where the scratchpads of decisions began (`rdvla.policy.WARM_STARTS`).
        attempts: how often the episode was started (more than 1 if the simulator broke).
        versions: of everything that matters: packages, Python, checkpoint.
    """

    suite: str
    task: str
    task_id: int
    instruction: str
    init_state: int | None = None
    placement_seed: int | None = None
    protocol: str = ""
    seed: int
    episode_seed: int
    rule: str
    stop: StopRule | None
    depth: int | None
    horizon: str
    strategy: str = SYNCHRONOUS
    delay: int = 0
    budget_ms: float | None = None
    warm_start: WarmStart = "noise"
    attempts: int = Field(ge=1)
    versions: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.init_state is None) == (self.placement_seed is None):
            raise ValueError("an episode starts either from an init_state or from a placement_seed")
        return self

    @property
    def start(self) -> Start:
        """Return where the episode started."""
        if self.init_state is not None:
            return InitState(self.init_state)
        assert self.placement_seed is not None
        return Seed(self.placement_seed)

    @property
    def driven(self) -> Rule:
        """Return how the policy was driven; whether it was traced is not known."""
        return Rule(**{name: getattr(self, name) for name in DRIVEN})

    @property
    def checkpoint(self) -> str:
        """Return the fingerprint of the policy's checkpoint; empty if it has none."""
        return self.versions.get("checkpoint", "")

    @property
    def execution(self) -> str:
        """Return a name that tells apart all ways to execute chunks."""
        return self.driven.execution

    @property
    def key(self) -> Key:
        """Return what identifies the episode within an evaluation (as `rdvla.eval.protocol.Job.key`)."""
        return (self.suite, self.task_id, self.start, self.rule, self.execution)


_Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StageRecord(Config):
    """One stage of an episode that was begun.

    Attributes:
        name: the benchmark's name of its goal.
        instruction: the sentence given to the policy.
        steps: control steps executed in it.
        solved: whether the goal was reached within the allowed steps.
    """

    name: str
    instruction: str
    steps: int = Field(ge=1)
    solved: bool


class EpisodeRecord(_Identity):
    """One episode that was played to its end.

    Attributes:
        success: whether the task, in all its stages, was solved within the allowed steps.
        num_stages: how many stages the episode had.
        stages: the stages that were begun, of an episode that has several; else empty.
        steps: control steps executed, settling excluded.
        iterations: iterations of the recurrent core, per decision.
        executed: actions executed, per decision.
        convergence: the stopping rule's metric at each check, per decision (four significant digits).
        signals: what else is known per decision, by name (`rdvla.types.ActionChunk.signals`; four digits).
        latency_ms: milliseconds per decision and stage: `observe` (rendering), `decide` (the whole call of the
            policy as seen from the loop) and every stage that the policy reports, named `policy.<stage>`.
        wall_s: duration of the episode, resetting included, in seconds.
        video: path of the film relative to the log's folder, or None.
        trace: path of the trace (`rdvla.eval.traces`) likewise.
    """

    kind: Literal["episode"] = "episode"
    success: bool
    num_stages: int = Field(default=1, ge=1)
    stages: tuple[StageRecord, ...] = ()
    steps: int = Field(ge=1)
    iterations: tuple[NonNegativeInt, ...]
    executed: tuple[NonNegativeInt, ...]
    convergence: tuple[tuple[float, ...], ...]
    signals: dict[str, tuple[FiniteFloat | None, ...]] = Field(default_factory=dict)
    latency_ms: dict[str, tuple[_Duration, ...]]
    wall_s: _Duration
    video: str | None = None
    trace: str | None = None

    @property
    def stages_solved(self) -> int:
        """Return how many stages were solved in a row."""
        return sum(stage.solved for stage in self.stages) if self.stages else int(self.success)


class ErrorRecord(_Identity):
    """One episode that could not be played because the simulator broke every time. It counts neither way.

    Attributes:
        error: what happened last.
    """

    kind: Literal["error"] = "error"
    error: str


AnyRecord = EpisodeRecord | ErrorRecord

_ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="kind")])


_ALWAYS = {"kind", "video"}
"""Fields that are written even at their defaults, as the first versions did."""


def to_line(record: AnyRecord) -> str:
    """Return the record as one line of JSON, without what is at its default: most evaluations have no use for it."""
    told = record.model_dump(mode="json", exclude_defaults=True).keys() | _ALWAYS
    values = {name: value for name, value in record.model_dump(mode="json").items() if name in told}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def parse_line(line: str, *, where: str) -> AnyRecord:
    """Read one line.

    Raises:
        RecordError: not JSON, or not a record of this schema. The message begins with `where`.
    """
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "line"
        raise RecordError(
            f"{where}: {place}: {first['msg']}. The file is damaged, or of another version of rdvla; remove the line "
            "to have its episode repeated."
        ) from None
    except RDVLAError as error:
        raise RecordError(f"{where}: {error}") from None


def read_records(folder: Path) -> list[AnyRecord]:
    """Return the records in `folder`; where an episode was repeated after an error, only the last one.

    A last line without its newline (a writer was killed) is ignored.

    Raises:
        RecordError: there is no log, or a line of it is damaged.
    """
    path = folder / EPISODES_FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(f"'{folder}' holds no {EPISODES_FILE}; is it the output folder of 'rdvla eval'?") from None
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}.") from None
    complete = text[: text.rfind(b"\n") + 1]
    try:
        lines = complete.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        number = complete[: error.start].count(b"\n") + 1
        raise RecordError(f"{path}:{number}: not UTF-8. The file is damaged; remove the line.") from None
    records = (parse_line(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1))
    return latest(records)


def read_episodes(folders: Sequence[Path]) -> list[tuple[Path, EpisodeRecord]]:
    """Return what one policy played in several evaluations, every episode with its folder.

    Raises:
        RecordError: a folder holds no evaluation, or a damaged one.
        ConfigError: an episode is there twice, or the episodes are of several checkpoints, of one that was loaded in
            several ways, or of several protocols of a suite.
    """
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise ConfigError("a folder is named twice, so its episodes would count twice; name it once.")
    played = [(f, record) for f in folders for record in read_records(f) if isinstance(record, EpisodeRecord)]
    checkpoints = {record.checkpoint for _, record in played}
    if len(checkpoints) > 1:
        found = ", ".join(sorted(name or "none" for name in checkpoints))
        raise ConfigError(f"the episodes are of different checkpoints ({found}); name folders of one policy.")
    ways = {_loaded(folder) for folder in folders}
    if len(ways) > 1:
        raise ConfigError(f"the episodes are of policies that differ ({'; '.join(sorted(ways))}); name folders of one.")
    protocols = {(record.suite, record.protocol) for _, record in played}
    for suite in {suite for suite, _ in protocols}:
        names = [protocol or "the usual one" for of, protocol in sorted(protocols) if of == suite]
        if len(names) > 1:
            raise ConfigError(f"{suite} was played by different protocols ({', '.join(names)}); name folders of one.")
    owners: dict[tuple[Any, ...], Path] = {}
    for folder, record in played:
        other = owners.setdefault((record.key, record.seed, record.protocol), folder)
        if other != folder:
            raise ConfigError(
                f"'{other}' and '{folder}' both hold {record.suite} task {record.task_id}, {record.start}, under "
                f"{record.rule}: it would count twice; name one of them."
            )
    return played


def _loaded(folder: Path) -> str:
    """Return how the policy of an evaluation was loaded; of one that is no checkpoint, which it is."""
    config = read_json(folder / RUN_FILE, RecordError, "evaluate again into another folder").get("config")
    if not isinstance(config, dict) or not isinstance(config.get("policy"), str):
        raise RecordError(f"'{folder / RUN_FILE}' does not say which policy was evaluated; evaluate again elsewhere.")
    source, options = split_policy(config["policy"])
    kept = [each for each in options.split(", ") if each.partition("=")[0] not in _ELSEWHERE]
    return ", ".join(kept) or "as it is" if config.get("policy_digest") else source


def latest(records: Iterable[AnyRecord]) -> list[AnyRecord]:
    """Return the last record of every episode, in order of first appearance; an error only if it was never played."""
    by_key: dict[Key, AnyRecord] = {}
    for record in records:
        if record.kind == "episode" or by_key.get(record.key, record).kind == "error":
            by_key[record.key] = record
    return list(by_key.values())


class EpisodeLog:
    """Appends records to `episodes.jsonl`; owns the folder while it is entered.

    Attributes:
        records: what the log held when it was entered.
    """

    def __init__(self, folder: Path) -> None:
        """Write to `folder`."""
        self._folder, self._path = folder, folder / EPISODES_FILE
        self._owner = ExitStack()
        self.records: list[AnyRecord] = []

    def append(self, record: AnyRecord) -> None:
        """Write one record and wait until it is on disk.

        Raises:
            StorageError: it could not be written; the log is left as it was before.
        """
        append_line(self._path, to_line(record))

    def __enter__(self) -> Self:
        """Own the folder and read what is there.

        Raises:
            ConfigError: another process is writing to the folder.
            RecordError: a line is damaged.
            StorageError: the folder cannot be written.
        """
        busy = f"another evaluation is writing to '{self._folder}'; wait for it or choose another."
        with ExitStack() as owner:
            owner.enter_context(owned_folder(self._folder, busy=busy))
            if self._path.exists():
                cut_torn_line(self._path)
                self.records = read_records(self._folder)
            self._owner = owner.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._owner.close()
