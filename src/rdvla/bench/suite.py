"""The whole benchmark: which sections, on what, how often; and its result."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rdvla import checkpoints
from rdvla.bench import sections
from rdvla.bench.machine import Machine, describe, floor
from rdvla.bench.measure import Case, Row, Timed, measure, per_iteration
from rdvla.bench.networks import Form, random_head, random_network
from rdvla.errors import ConfigError, suggest
from rdvla.files import write_json
from rdvla.model.config import RDVLAConfig, rdvla_0_5b
from rdvla.model.rdvla import RDVLA
from rdvla.policies.network import check_device

if TYPE_CHECKING:
    from rdvla.bench.simulator import Arena

SECTIONS = ("head", "decision", "memory", "batch", "training", "simulator", "calvin")
USUAL = SECTIONS[:-2]
"""What needs no simulator."""
FORMAT = 1
FEW = 3
"""Most repetitions of what takes long: the whole released network, the simulator."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        checkpoint: a policy small enough to measure everything; its folder's name heads its tables.
        chosen: names of `SECTIONS`.
        released: a network with random weights to measure beside it; None measures the checkpoint alone.
        full: encode with the released network too, not only its head (released sizes: 12 GB, minutes).
        repeats: repetitions of each timing, at least 1.
        threads: torch's threads; None keeps its choice.
        processor_time: count the time that the process computes, not the clock's; for a machine with other work, and
            one thread.
        device: a torch device; all sides compute there.
        compile: measure the recorded forms too (see `rdvla.model.recorded`).
        depths: fixed depths of the head, at least two, ascending.
        batches: batch sizes.
        memory_depths: depths at which memory is counted.

    Raises:
        ConfigError: an unknown section, or a value out of range.
    """

    checkpoint: Path
    chosen: tuple[str, ...] = USUAL
    released: RDVLAConfig | None = None
    full: bool = False
    repeats: int = 5
    threads: int | None = None
    processor_time: bool = False
    device: str = "cpu"
    compile: bool = False
    depths: tuple[int, ...] = (1, 4, 8, 12, 32)
    batches: tuple[int, ...] = (1, 4, 16)
    memory_depths: tuple[int, ...] = (1, 8, 64, 512)

    def __post_init__(self) -> None:
        for name in self.chosen:
            if name not in SECTIONS:
                raise ConfigError(f"unknown section '{name}'.{suggest(name, SECTIONS)}")
        if self.repeats < 1:
            raise ConfigError(f"repeats must be at least 1, found {self.repeats}.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, found {self.threads}.")
        if self.processor_time and self.threads != 1:
            raise ConfigError(f"processor time is that of one thread: threads must be 1, found {self.threads}.")
        if self.processor_time and self.device != "cpu":
            raise ConfigError(f"processor time says nothing about the device '{self.device}'; drop one of the two.")
        check_device(self.device)

    @property
    def clock(self) -> Callable[[], float]:
        """What the times are read from."""
        if self.processor_time:
            return time.process_time
        return time.perf_counter if self.device == "cpu" else self._synchronised_clock

    def _synchronised_clock(self) -> float:
        torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def forms(self, usual: tuple[Form, ...]) -> tuple[Form, ...]:
        """Return how ours computes: on a CPU as `usual`, elsewhere in every precision; and compiled, if asked for."""
        plain = usual if self.device == "cpu" else sections.PLAIN
        return (*plain, *sections.COMPILED) if self.compile else plain

    @classmethod
    def usual(cls, checkpoint: Path, **changes: Any) -> "Plan":
        """Return the plan with the released sizes."""
        return cls(checkpoint, released=rdvla_0_5b(), **changes)

    def quick(self) -> "Plan":
        """Return a plan of some seconds: the checkpoint alone, one repetition, few depths."""
        return replace(
            self, released=None, full=False, repeats=1, depths=(1, 12), batches=(1, 4), memory_depths=(1, 8, 64)
        )


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        machine: the limits, measured before and after.
        description: what the numbers depend on (see `describe`).
        repeats: as planned.
        rows: in the order of the sections.
    """

    machine: Machine
    description: dict[str, Any]
    repeats: int
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values; times in each row's unit, the repetitions included."""
        limits = {
            "read_gb_per_s": self.machine.bytes_per_second / 1e9,
            "float32_gflop_per_s": self.machine.flops_per_second / 1e9,
        }
        return {
            "format": FORMAT,
            "machine": self.description | limits,
            "repeats": self.repeats,
            "rows": [_row_document(row) for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """Write the document.

        Raises:
            StorageError: the file cannot be written.
        """
        write_json(path, self.document(), indent=1)


def _row_document(row: Row) -> dict[str, Any]:
    variants = {
        name: {
            "median": row.median(name),
            "values": list(row.values[name]),
            "ratio": row.ratio(name),
            "difference": row.differences.get(name),
            "times_floor": row.distance(name),
        }
        for name in row.values
    }
    return {"section": row.section, "name": row.name, "unit": row.unit, "floor": row.floor, "variants": variants}


def run(plan: Plan, tell: Callable[[str], None] = lambda _: None) -> BenchResult:
    """Measure everything that `plan` asks for.

    Args:
        plan: what to measure.
        tell: is told what happens.

    Raises:
        InexactError: a variant that should be exact is not; no times are reported.
        CheckpointError, MissingExtraError, SimulatorError: see `rdvla.checkpoints.load` and `rdvla.bench.simulator`.
    """
    network = checkpoints.load(plan.checkpoint, gripper="none").model.float().to(plan.device).eval()
    network.requires_grad_(requires_grad=False)
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions is not float32
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    tell("how fast the machine reads and multiplies")
    machine = Machine.measure(plan.clock, device=plan.device)
    bench = _Bench(plan, network, tell)
    for name in SECTIONS:
        if name in plan.chosen:
            getattr(bench, name)()
    machine = machine.best(Machine.measure(plan.clock, device=plan.device))
    rows = [row for entry in bench.found for row in _rows(entry, machine)]
    description = describe(plan.device) | {"time": "of the processor" if plan.processor_time else "of the clock"}
    return BenchResult(machine, description, plan.repeats, tuple(rows))


def _rows(entry: Row | list[Timed], machine: Machine) -> list[Row]:
    """Return the rows of a group of timed cases; the head's get a line for one more iteration."""
    if isinstance(entry, Row):
        return [entry]
    rows = [timed.row(machine) for timed in entry]
    fixed = [(row, timed.case) for row, timed in zip(rows, entry, strict=True) if timed.case.name.startswith("r = ")]
    if len(fixed) < 2:
        return rows
    (shallow, before), (deep, after) = fixed[-2:]
    iterations = after.phases[1].count - before.phases[1].count
    once = floor([replace(after.phases[1], count=1)], machine)
    return [*rows, per_iteration(shallow, deep, iterations, 1e3 * once)]


class _Bench:
    """Runs the sections one after the other and collects what they find."""

    def __init__(self, plan: Plan, network: RDVLA, tell: Callable[[str], None]) -> None:
        self.plan, self.network, self.tell = plan, network, tell
        self.found: list[Row | list[Timed]] = []
        self._title = plan.checkpoint.resolve().name
        self._heads = [(self._title, network.config, network.head)]
        if plan.released is not None and {"head", "memory", "batch"} & set(plan.chosen):
            tell("draw a head of released size")
            self._heads.insert(0, ("released size", plan.released, random_head(plan.released.head).to(plan.device)))

    def head(self) -> None:
        for title, config, head in self._heads:
            forms = self.plan.forms(sections.PLAIN)
            self._time(sections.head_cases(title, config, head, self.plan.depths, forms))

    def decision(self) -> None:
        forms = self.plan.forms(sections.LOADED)
        self._time(sections.decision_cases(self._title, self.network, forms))
        if self.plan.full and self.plan.released is not None:
            self.tell("draw a network of released size")
            network = random_network(self.plan.released).to(self.plan.device)
            self._time(sections.decision_cases("released size", network, forms), most=FEW)

    def memory(self) -> None:
        for title, config, head in self._heads:
            self.tell(f"memory, {title}")
            self.found += sections.memory_rows(title, config, head, self.plan.memory_depths)

    def batch(self) -> None:
        sizes, forms = self.plan.batches, self.plan.forms(sections.LOADED)
        for title, config, head in self._heads[:-1]:
            self._time(sections.head_batches(f"{title}, head", config, head, sizes, forms))
        self._time(sections.decision_batches(f"{self._title}, whole decision", self.network, sizes, forms))

    def training(self) -> None:
        self._time(sections.training_cases(self._title, copy.deepcopy(self.network)))

    def simulator(self) -> None:
        from rdvla.bench.simulator import LIBERO

        self._evaluate(LIBERO)

    def calvin(self) -> None:
        from rdvla.bench.simulator import CALVIN

        self._evaluate(CALVIN)

    def _evaluate(self, place: "Arena") -> None:
        from rdvla.bench.simulator import simulator_cases, start

        self.tell(f"start the simulator of {place.suite}")
        env, policy = start(place, self.plan.checkpoint, device=self.plan.device, compile=self.plan.compile)
        try:
            self._time(simulator_cases(self._title, place, env, policy), most=FEW)
        finally:
            env.close()

    def _time(self, cases: Sequence[Case], most: int | None = None) -> None:
        repeats = self.plan.repeats if most is None else min(most, self.plan.repeats)
        self.found.append(list(measure(cases, repeats, self.tell, self.plan.clock)))
