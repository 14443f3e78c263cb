"""A checkpoint made ready to act: images, words and state in, actions in the environment's convention out."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdvla import checkpoints
from rdvla.checkpoints.checkpoint import Checkpoint, require_gripper
from rdvla.errors import ConfigError
from rdvla.model.budget import Costs, Timer
from rdvla.model.decide import HeadOutput, decide
from rdvla.model.freeze import freeze, int8_products
from rdvla.model.rdvla import Inputs
from rdvla.model.recorded import RecordedNetwork
from rdvla.model.stopping import make_criterion
from rdvla.model.trace import trace
from rdvla.model.watch import Recurrence
from rdvla.policies.carry import Carry, CarryFormat, as_latents, tag
from rdvla.policies.io import PolicyIO
from rdvla.policy import ALARM, PLAIN, Ask, Policy, PolicyMetadata
from rdvla.stops import DEFAULT_STOP, StopRule
from rdvla.types import ActionChunk, GripperConvention, Observation


def load_policy(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    statistics: str | None = None,
    gripper: GripperConvention | None = None,
    device: str = "cpu",
    precision: str | None = None,
    compile: bool = False,
) -> "RDVLAPolicy":
    """Load a checkpoint and return the policy, after one decision about nothing that measures its `costs`.

    Args:
        source: a native or released checkpoint directory, or a hub id.
        revision: branch, tag or commit of a hub id.
        base: the VLM below an un-merged `lora_adapter/`; see `rdvla.checkpoints.load`.
        statistics: which entry of the checkpoint's statistics to use, if it has several (a suite name).
        gripper: what the environment expects in the last action, for a released checkpoint that does not say it.
        device: a torch device.
        precision: `float32`, `bfloat16` or `int8` (8-bit linear layers, CPU only); None keeps the checkpoint's.
        compile: record every shape of batch and prompt at its first decision, with `torch.compile` and, on a GPU, CUDA
            graphs; for a GPU (see `rdvla.model.recorded`). Only one thread may use it at a time.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or incomplete.
        ConfigError: torch has no such device here, the device cannot compute in that precision, or the checkpoint says
            that its gripper is another.
    """
    check_device(device)
    checkpoint = checkpoints.load(source, revision=revision, base=base, gripper=gripper)
    require_gripper(checkpoint, gripper)
    policy = RDVLAPolicy(
        checkpoint, name=str(source), statistics=statistics, device=device, precision=precision, compile=compile
    )
    policy.warm_up()
    return policy


def check_device(name: str) -> None:
    """Make sure that torch can compute on the device `name`.

    Raises:
        ConfigError: it has no such device here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used here: {error}") from None


class RDVLAPolicy(Policy):
    """A `Policy` backed by a network. Stateless: every decision depends on its observation and `Ask` alone.

    Attributes:
        model: the network, frozen for inference.
        device: where it computes.
        io: from observations to the network and back.
        default_stop: the rule of decisions that name none: the checkpoint's, else `DEFAULT_STOP`.
        alarm: the checkpoint's, for the signal `alarm` of decisions that say their step; None gives none.
        costs: what the stages of a decision take, by batch size. Every decision on a CPU corrects it, elsewhere those
            with a budget; only the depth that a budget buys depends on it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        statistics: str | None = None,
        device: str = "cpu",
        precision: str | None = None,
        compile: bool = False,
    ) -> None:
        """Take over `checkpoint.model`, frozen for inference (see `rdvla.model.freeze`)."""
        network = checkpoint.model.to(device).requires_grad_(requires_grad=False)
        self._carry_format = CarryFormat(network.head)
        self.model = freeze(network, precision, pack=not compile)
        self._recorded = RecordedNetwork(self.model) if compile else None
        self.device = torch.device(device)
        self.io = PolicyIO.of(checkpoint, statistics)
        self.default_stop = checkpoint.default_stop or DEFAULT_STOP
        self.alarm = checkpoint.alarm
        self.costs: defaultdict[int, Costs] = defaultdict(Costs)
        config = self.model.config
        self._metadata = PolicyMetadata(
            name=name,
            cameras=config.cameras,
            state_dim=config.head.state_dim,
            action_dim=config.head.action_dim,
            chunk_size=config.head.chunk_size,
            extra={
                "step": checkpoint.step,
                "gripper": self.io.convention.gripper,
                "action_reach": self.io.statistics.action.reach.tolist(),
                "images": asdict(self.io.image_path),
                "default_stop": str(self.default_stop),
                "alarm": None if self.alarm is None else asdict(self.alarm),
                "precision": precision or str(self.model.head.gamma_init.dtype).removeprefix("torch."),
                "int8_products": int8_products() if precision == "int8" else None,
            },
        )

    @property
    def metadata(self) -> PolicyMetadata:
        """What this policy needs and returns."""
        return self._metadata

    def reset(self) -> None:
        """Nothing to forget."""

    def warm_up(self, batch: int = 1, stop: StopRule | None = None) -> None:
        """Decide about nothing: measures `costs` for this batch size and, if compiled, records it.

        A compiled network is recorded for a short prompt; one of another length records again.

        Args:
            batch: of the decisions to come.
            stop: where they stop; None is `default_stop`. What a rule that defers asks the Coda is recorded too.
        """
        images = {name: np.zeros((256, 256, 3), dtype=np.uint8) for name in self._metadata.cameras}
        nothing = Observation(images, np.zeros(self._metadata.state_dim, dtype=np.float32), "wait")
        rules = [StopRule.fixed(8)]
        if self._recorded is not None and (stop or self.default_stop).defer is not None:
            rules.append(StopRule("action_mse", threshold=0.0, max_depth=3, defer=1e9))  # a gate that is open
        for rule in rules:
            self.infer_batch([nothing] * batch, [Ask(rule, seed=0, budget_ms=math.inf)] * batch)

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        """Decide once; see `rdvla.policy.Policy.infer`."""
        return self.infer_batch([observation], [ask])[0]

    @torch.no_grad()
    def infer_batch(self, observations: Sequence[Observation], asks: Sequence[Ask]) -> list[ActionChunk]:
        """Decide for several observations at once, of any tasks.

        Each sample stops on its own; the timings are those of the batch. Without a rule, `default_stop` is taken. With
        a budget, counted from when its group is begun, as many iterations are made as should fit, judged by what they
        cost in earlier decisions and in this one; at least one.

        Args:
            observations: at least one.
            asks: one per observation. Those that agree in all but seed, carry and step are decided together, one
                such group after the other, those with a budget first.

        Raises:
            ObservationError: a camera is missing or a state has another size.
            ConfigError: no observation, or another number of asks.
        """
        if not observations:
            raise ConfigError("infer_batch needs at least one observation.")
        if len(asks) != len(observations):
            raise ConfigError(f"{len(observations)} observations need as many asks, found {len(asks)}.")
        groups: dict[Ask, list[int]] = {}
        for index, ask in enumerate(asks):
            groups.setdefault(ask.shared, []).append(index)
        if len(groups) == 1:
            return self._decide(observations, asks)
        chunks: dict[int, ActionChunk] = {}
        for _, group in sorted(groups.items(), key=lambda each: each[0].budget_ms is None):
            decided = self._decide([observations[index] for index in group], [asks[index] for index in group])
            chunks |= zip(group, decided, strict=True)
        return [chunks[index] for index in range(len(asks))]

    def _decide(self, observations: Sequence[Observation], asks: Sequence[Ask]) -> list[ActionChunk]:
        """Decide for asks that agree in what they share."""
        rule, trace_depth = asks[0].stop or self.default_stop, asks[0].trace_depth
        if trace_depth is not None and trace_depth < rule.max_depth:
            raise ConfigError(
                f"trace_depth is {trace_depth}, but {rule} may take {rule.max_depth} iterations; trace as deep."
            )
        start = time.perf_counter()
        timer = self._timer(len(observations), asks[0])

        inputs = self._on_device(self.io.observed(observations))
        latents = torch.cat([self._begin(ask, each.instruction) for ask, each in zip(asks, observations, strict=True)])
        prepared = time.perf_counter()
        head, conditioning = self._condition(inputs)
        timer.lap("encode")
        encoded = time.perf_counter()
        criterion, warm_start = make_criterion(rule), asks[0].warm_start
        decision = decide(head, conditioning, latents, criterion, rule, timer=timer, warm_start=warm_start)
        normalised = decision.actions.float().cpu().numpy()
        signals = {name: values.tolist() for name, values in decision.signals.items()}
        decided = time.perf_counter()

        actions, opening = self.io.actions(normalised), self.io.opening(normalised)
        timings = {
            "prepare": (prepared - start) * 1e3,
            "encode": (encoded - prepared) * 1e3,
            "recurrence": (decided - encoded) * 1e3,
            "total": (time.perf_counter() - start) * 1e3,
        }
        if self._times_stages(asks[0]):
            timings |= {"core": timer.spent["iteration"] * 1e3, "coda": timer.spent["decode"] * 1e3}
        carries = self._carries(decision, observations)
        columns: dict[str, NDArray[np.float32]] = {}
        if asks[0].trace_depth is not None:
            shadow = trace(head, conditioning, latents, asks[0].trace_depth)
            columns = {name: values.cpu().numpy() for name, values in shadow.items()}
            timings["trace"] = (time.perf_counter() - start) * 1e3 - timings["total"]
        return [
            ActionChunk(
                actions=chunk,
                num_recurrences=int(decision.num_recurrences[row]),
                convergence=tuple(decision.traces[row]),
                out_of_time=bool(decision.out_of_time[row]),
                timings=timings,
                signals={name: values[row] for name, values in signals.items()} | self._alarm_level(asks[row]),
                opening=None if opening is None else opening[row],
                trace={name: values[row] for name, values in columns.items()},
                carry=carries[row],
            )
            for row, chunk in enumerate(actions)
        ]

    def _alarm_level(self, ask: Ask) -> dict[str, float]:
        return {} if self.alarm is None or ask.step is None else {ALARM: self.alarm.level(ask.step)}

    def _begin(self, ask: Ask, instruction: str) -> Tensor:
        """Return the scratchpad `[1, K, D]` that a decision begins with."""
        head = self.model.head
        if ask.warm_start != "noise" and ask.carry is not None:
            carry = self._carry_format.read(ask.carry)
            if carry.instruction == tag(instruction):
                return as_latents(carry, head.prelude.action_queries)
        return head.init_latents(1, _generator(ask.seed))

    def _carries(self, decision: HeadOutput, observations: Sequence[Observation]) -> list[bytes | None]:
        """Return what the decisions leave to the next ones."""
        if decision.carry is None:
            return [None] * len(observations)
        latents = decision.carry.float().cpu().numpy()
        return [
            self._carry_format.write(Carry(tag(each.instruction), latents[row]))
            for row, each in enumerate(observations)
        ]

    def _condition(self, inputs: Inputs) -> tuple[Recurrence[Any], Any]:
        """Return the head, and what stays fixed while it iterates."""
        if self._recorded is not None:
            return self._recorded.condition(inputs)
        return self.model.head, self.model.head.condition(self.model.encode(inputs))

    def _times_stages(self, ask: Ask) -> bool:
        """Whether stages are timed: elsewhere than on a CPU, the host has to wait for the device after each."""
        return self.device.type == "cpu" or ask.budget_ms is not None

    def _timer(self, batch: int, ask: Ask) -> Timer:
        if not self._times_stages(ask):
            return Timer()
        budget = math.inf if ask.budget_ms is None else ask.budget_ms / 1e3
        clock = time.perf_counter if self.device.type == "cpu" else self._synchronised_clock
        return Timer(budget, self.costs[batch], clock)

    def _synchronised_clock(self) -> float:
        torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def _on_device(self, inputs: Inputs) -> Inputs:
        return Inputs(**{field.name: getattr(inputs, field.name).to(self.device) for field in fields(inputs)})


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)
