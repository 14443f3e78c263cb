"""Executing chunks in lockstep with a simulator, with answers that take a given number of control steps."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError
from rdvla.execution.ledger import Decision, Ledger
from rdvla.execution.strategies import Strategy, Synchronous
from rdvla.policy import DISAGREEMENT, PLAIN, Ask, Policy, decision_ask
from rdvla.types import ActionChunk, Observation

StandStill = Callable[[NDArray[np.float32] | None], NDArray[np.float32]]
"""From the command before (None at the start) to one that lets the robot stand still, both `[action_dim]`."""


class Executor:
    """Executes the chunks of a policy in lockstep with a simulator: one call of `act` per control step.

    The observation is passed as a function, called only when the policy is asked. An environment that renders on
    demand therefore renders once per decision instead of once per step.

    An answer can be made to arrive `delay` control steps after it was asked for, whatever it really took. The world
    goes on meanwhile; without an action at hand, the robot stands still. Where the strategy waits for an answer, its
    steps are not counted, as on a robot (`rdvla.robot.loop.ControlLoop`): the plan still begins where the robot stands.

    Attributes:
        policy: decides.
        ask: how every decision is wanted; its seed is the episode's.
        delay: control steps from question to answer.
        decisions: the chunks of this episode, oldest first, with the signal `rdvla.policy.DISAGREEMENT`
            where a plan was left.
        ledger: what became of their actions; steps are counted within a stage, without those of waiting.
    """

    def __init__(
        self,
        policy: Policy,
        strategy: Strategy,
        ask: Ask = PLAIN,
        *,
        delay: int = 0,
        stand_still: StandStill | None = None,
    ) -> None:
        """Execute `policy`'s chunks as `strategy` says; decision k of an episode is seeded with (`ask.seed`, k).

        Args:
            policy: decides, in the call of `act`.
            strategy: turns chunks into actions.
            ask: how every decision is wanted.
            delay: control steps from question to answer, at least 0.
            stand_still: the command for a step without an action, given the one before (None at the start); needed
                with a delay only.

        Raises:
            ConfigError: a negative delay, one that outlasts every chunk, or one without `stand_still`.
        """
        if delay < 0 or (delay > 0 and stand_still is None):
            raise ConfigError(f"delay = {delay} must be at least 0, and above 0 a robot must know how to stand still.")
        if not isinstance(strategy, Synchronous) and delay and delay >= policy.metadata.chunk_size:
            raise ConfigError(
                f"delay = {delay}: chunks of {policy.metadata.chunk_size} actions are past when they come; only the "
                "strategy 'synchronous' can execute them."
            )
        self.policy = policy
        self.ask = ask
        self.delay = delay
        self.decisions: list[ActionChunk] = []
        self.ledger = Ledger()
        self._strategy = strategy
        self._stand_still = stand_still
        self._step = 0
        self._asked: Decision | None = None
        self._asked_for = 0
        self._carry: bytes | None = None
        self._planned: Decision | None = None
        self._last: NDArray[np.float32] | None = None

    def reset(self, seed: int | None = None) -> None:
        """Start an episode, drawing scratchpads from `seed`."""
        self.ask = replace(self.ask, seed=seed)
        self._last = None
        self.next_stage()
        self.decisions = []
        self.ledger = Ledger()

    def next_stage(self) -> None:
        """Go on with another instruction: drop the actions at hand; decisions are counted on."""
        if self._asked is not None:
            self.ledger.settle(self._step, self._asked, range(len(self._asked.chunk.actions)), "episode_end")
        self._asked = self._carry = self._planned = None
        self._strategy.reset(self.ledger, self._step)
        self._step = 0
        self.policy.reset()

    def act(self, observe: Callable[[], Observation]) -> NDArray[np.float32]:
        """Return the next action `[action_dim]`; `observe` is called only if the policy is asked."""
        self._arrive()
        if self._asked is None and self._strategy.wants(self._step):
            number = len(self.decisions)
            chunk = self.policy.infer(observe(), decision_ask(self.ask, number, self._carry, step=self._step))
            self._carry = chunk.carry
            chunk = self._compared(chunk)
            self.decisions.append(chunk)
            self._planned = self._asked = Decision(number, self._step, chunk)
            self._asked_for = 0
            self._arrive()
        waiting = self._asked is not None and self._strategy.waits(self._step)
        action = None if waiting else self._strategy.next(self._step, self.ledger)
        if action is None:
            assert self._stand_still is not None, "without a delay there is always an action"
            action = self._stand_still(self._last)
        self._step += not waiting
        self._asked_for += 1
        self._last = action
        return action

    @property
    def executed(self) -> tuple[int, ...]:
        """How many actions of each decision were executed; a mean counts for all of its plans."""
        counts = Counter(entry.decision for entry in self.ledger.entries if entry.fate == "executed")
        return tuple(counts[number] for number in range(len(self.decisions)))

    def _compared(self, chunk: ActionChunk) -> ActionChunk:
        """Return `chunk` with how far it is from the rest of the chunk before."""
        before = self._planned
        if before is None or self._step - before.step >= len(before.chunk.actions):
            return chunk
        left = before.chunk.actions[self._step - before.step :]
        common = min(len(left), len(chunk.actions))
        change = float(np.square(chunk.actions[:common] - left[:common]).mean())
        return replace(chunk, signals={**chunk.signals, DISAGREEMENT: change})

    def _arrive(self) -> None:
        """Take in the answer, if it is due."""
        if self._asked is not None and self._asked_for >= self.delay:
            decision, self._asked = self._asked, None
            self._strategy.add(decision, self._step, self.ledger)
