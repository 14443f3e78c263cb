"""The control loop: one command per control step, whatever the policy and the network do meanwhile.

while not done:
    robot.send(loop.act(robot.observe))
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, RDVLAError
from rdvla.execution import Decision, Ledger, Strategy, Synchronous
from rdvla.policy import ALARM, PLAIN, Ask, Policy, decision_ask
from rdvla.robot.clock import Clock, SystemClock
from rdvla.robot.guard import ActionGuard
from rdvla.types import ActionChunk, Observation

KEPT = 10_000
_log = logging.getLogger(__name__)


EventKind = Literal["asked", "answered", "failed", "missed", "late", "alarm"]
OnAlarm = Literal["hold"] | int | Callable[[ActionChunk], None]
"""What to do once the policy's alarm is raised: hold still until `resume` or `reset`; slow down, that is execute at
most so many actions of every chunk; or call a function once, which asks for help."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended: with a chunk or with an error."""

    chunk: ActionChunk | None
    error: RDVLAError | None = None


class Decider(Protocol):
    """Asks a policy without holding up the loop; one request at a time."""

    def submit(self, observation: Observation, ask: Ask) -> None:
        """Start deciding. The previous outcome must have been collected."""
        ...

    def collect(self, wait_s: float) -> Outcome | None:
        """Return the outcome of the request, or None if there is none within `wait_s` seconds."""
        ...


class ThreadedDecider:
    """Runs `policy.infer` in a thread of its own."""

    def __init__(self, policy: Policy) -> None:
        """Ask `policy`, local or remote; nobody else may use it meanwhile."""
        self._policy = policy
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rdvla-decider")
        self._future: Future[ActionChunk] | None = None

    def submit(self, observation: Observation, ask: Ask) -> None:
        """Start deciding."""
        self._future = self._pool.submit(self._policy.infer, observation, ask)

    def collect(self, wait_s: float) -> Outcome | None:
        """Return the outcome of the request, or None if there is none within `wait_s` seconds."""
        future = self._future
        if future is None or not wait([future], wait_s).done:
            return None
        self._future = None
        try:
            return Outcome(future.result())
        except RDVLAError as error:
            return Outcome(None, error)

    def close(self) -> None:
        """End the thread after the request in progress, if any."""
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class RequestEvent:
    """Something that happened to a request.

    Attributes:
        step: control step at which it was noticed.
        request: number of the request.
        kind: `asked`, `answered`, `failed` (the policy raised), `missed` (no answer by the deadline), `late`
            (the answer came after it was given up), `alarm` (the answer raises the policy's alarm, for the first time
            in the episode).
        detail: in words.
    """

    step: int
    request: int
    kind: EventKind
    detail: str = ""


class Pacer:
    """Keeps control steps at a fixed rate; after an overrun it goes on from now, never in a burst.

    Attributes:
        overruns: steps that began late by more than a whole period.
    """

    def __init__(self, rate_hz: float, clock: Clock | None = None) -> None:
        """Pace at `rate_hz` > 0 steps per second.

        Raises:
            ConfigError: a rate that is not above 0, or not finite.
        """
        if not 0 < rate_hz < math.inf:
            raise ConfigError(f"rate_hz must be a number above 0, found {rate_hz}.")
        self.overruns = 0
        self._period_s = 1 / rate_hz
        self._clock = clock or SystemClock()
        self._next: float | None = None

    def wait(self) -> None:
        """Return when the next step is due."""
        now = self._clock.now()
        if self._next is None:
            self._next = now
        if now - self._next > self._period_s:
            self.overruns += 1
            _log.warning("a control step began %.0f ms late", (now - self._next) * 1000)
            self._next = now
        self._clock.sleep(self._next - now)
        self._next += self._period_s

    def restart(self) -> None:
        """Count from now: the next step is due a whole period later. For after the robot stood still."""
        self._next = self._clock.now() + self._period_s


@dataclass
class _Request:
    number: int
    step: int
    asked_at: float
    given_up: bool = False


class ControlLoop:
    """Combines a policy, a chunk strategy and a guard; call `act` once per control step.

    Attributes:
        ledger: what became of every action.
        events: the last 10,000 things that happened to requests, oldest first.
    """

    def __init__(
        self,
        decider: Decider,
        strategy: Strategy,
        guard: ActionGuard,
        *,
        deadline_s: float,
        ask: Ask = PLAIN,
        pacer: Pacer | None = None,
        clock: Clock | None = None,
        on_alarm: OnAlarm | None = None,
    ) -> None:
        """Set up the loop; `reset` starts an episode.

        Args:
            decider: asks the policy.
            strategy: turns chunks into actions.
            guard: checks every command.
            deadline_s: a request older than this is given up, and its answer never executed.
            ask: how every decision is wanted; its seed is set by `reset`.
            pacer: makes `act` wait until the next step is due; None leaves the rate to the caller.
            clock: None takes the machine's.
            on_alarm: what to do once the policy's alarm (the signal `alarm`) is raised; None only notes it. A policy
                that has none is told in the log.

        Raises:
            ConfigError: a deadline that is not above 0, an `on_alarm` of another kind, or slowing down to fewer than 1
                action or under another strategy than `Synchronous`, whose late chunks would be past.
        """
        if isinstance(on_alarm, bool) or not (
            on_alarm in (None, "hold") or isinstance(on_alarm, int) or callable(on_alarm)
        ):
            raise ConfigError(f"on_alarm = {on_alarm!r}: it is 'hold', a number of actions, a function, or None.")
        if isinstance(on_alarm, int) and (on_alarm < 1 or not isinstance(strategy, Synchronous)):
            raise ConfigError(
                f"on_alarm = {on_alarm!r}: to slow down is to execute at least 1 action of a chunk, synchronously."
            )
        if not deadline_s > 0:
            raise ConfigError(f"deadline_s must be above 0, found {deadline_s}.")
        self.ledger = Ledger()
        self.events: deque[RequestEvent] = deque(maxlen=KEPT)
        self._decider = decider
        self._strategy = strategy
        self._guard = guard
        self._deadline_s = deadline_s
        self._ask_for = ask
        self._pacer = pacer
        self._clock = clock or SystemClock()
        self._step = 0
        self._asked = 0
        self._asked_in_episode = 0
        self._carry: bytes | None = None
        self._request: _Request | None = None
        self._on_alarm = on_alarm
        self._alarmed = self._holding = False
        self._warned = on_alarm is None

    @property
    def step(self) -> int:
        """The control step of the episode that comes next, from 0."""
        return self._step

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; decision k is seeded with (`seed`, k). A request in flight is given up."""
        self._give_up("a new episode began")
        self._strategy.reset(self.ledger, self._step)
        self._guard.reset()
        self._ask_for = replace(self._ask_for, seed=seed)
        self._step = 0
        self._asked_in_episode = 0
        self._carry = None
        self._alarmed = self._holding = False

    def resume(self) -> None:
        """Go on after the alarm held the robot still; the plan is made anew, the alarm stays quiet in this episode."""
        self._holding = False
        self._carry = None

    def act(self, observe: Callable[[], Observation]) -> NDArray[np.float32]:
        """Return the command `[action_dim]` of this control step; `observe` is called only if the policy is asked."""
        if self._pacer is not None:
            self._pacer.wait()
        self._collect(0.0)
        if not self._holding:
            self._plan(observe)
        action = None if self._holding else self._strategy.next(self._step, self.ledger)
        reason = "the alarm is raised" if self._holding else "no action at hand"
        if action is None:
            command = self._guard.miss(self._step, reason, wanted=self._holding)
        else:
            command = self._guard.check(self._step, action)
        self._step += 1
        return command

    def _plan(self, observe: Callable[[], Observation]) -> None:
        """Ask if the strategy wants to, and wait if it does; at the start also for what an earlier episode asked."""
        if self._step == 0 and self._request is not None and self._strategy.waits(0):
            self._collect(self._deadline_s)
        if self._request is None and self._strategy.wants(self._step):
            self._ask(observe())
        if self._strategy.waits(self._step) and self._request is not None and not self._request.given_up:
            self._collect(max(0.0, self._request.asked_at + self._deadline_s - self._clock.now()))
            if self._pacer is not None:
                self._pacer.restart()
        if self._request is not None and self._clock.now() - self._request.asked_at >= self._deadline_s:
            self._give_up(f"no answer within {self._deadline_s:g} s")

    def _ask(self, observation: Observation) -> None:
        ask = decision_ask(self._ask_for, self._asked_in_episode, self._carry, step=self._step)
        self._request = _Request(self._asked, self._step, self._clock.now())
        self._asked += 1
        self._asked_in_episode += 1
        self._note("asked")
        self._decider.submit(observation, ask)

    def _collect(self, wait_s: float) -> None:
        """Take in the outcome of the request in flight, if it comes within `wait_s`."""
        request = self._request
        if request is None:
            return
        outcome = self._decider.collect(wait_s)
        if outcome is None:
            return
        self._carry = None
        in_time = not request.given_up and self._clock.now() - request.asked_at <= self._deadline_s
        if outcome.chunk is None:
            self._note("failed", str(outcome.error))
        elif in_time:
            self._note("answered")
            self._carry = outcome.chunk.carry
            self._take(Decision(request.number, request.step, outcome.chunk))
        else:
            self._note("late")
            decision = Decision(request.number, request.step, outcome.chunk)
            self.ledger.settle(self._step, decision, range(len(outcome.chunk.actions)), "late")
        self._request = None

    def _take(self, decision: Decision) -> None:
        """Hand an answer to the strategy, unless the alarm says otherwise."""
        chunk, size = decision.chunk, len(decision.chunk.actions)
        level = chunk.signals.get(ALARM, 0.0)
        if ALARM not in chunk.signals and not self._warned:
            self._warned = True
            _log.warning("the policy has no alarm (`rdvla calibrate --alarm` gives it one): on_alarm will not act")
        first, self._alarmed = level > 1 and not self._alarmed, self._alarmed or level > 1
        if first:
            self._note("alarm", f"{level:.2f} times the steps of its limit")
            if self._on_alarm == "hold":
                self._holding = True
                self._strategy.reset(self.ledger, self._step)
                self.ledger.settle(self._step, decision, range(size), "alarm")
                return
            if callable(self._on_alarm):
                self._on_alarm(chunk)
        if self._alarmed and isinstance(self._on_alarm, int) and self._on_alarm < size:
            self.ledger.settle(self._step, decision, range(self._on_alarm, size), "beyond_horizon")
            decision = replace(decision, chunk=replace(chunk, actions=chunk.actions[: self._on_alarm]))
        self._strategy.add(decision, self._step, self.ledger)

    def _give_up(self, reason: str) -> None:
        if self._request is not None and not self._request.given_up:
            self._request.given_up = True
            self._note("missed", reason)

    def _note(self, kind: EventKind, detail: str = "") -> None:
        if self._request is not None:
            self.events.append(RequestEvent(self._step, self._request.number, kind, detail))
            if kind in ("failed", "missed", "late", "alarm"):
                _log.warning("step %d: request %d %s: %s", self._step, self._request.number, kind, detail)
