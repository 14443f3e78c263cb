"""What a control loop does when the policy's alarm is raised: hold, slow down, ask for help; and starting cold."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from rdvla.errors import CarryError, ConfigError
from rdvla.execution import Background, Executor, Synchronous
from rdvla.policy import ALARM, Ask
from rdvla.robot.guard import ActionGuard, ActionLimits
from rdvla.robot.loop import ControlLoop, Outcome
from rdvla.types import ActionChunk
from serve_fakes import ACTION_DIM, CHUNK, FakePolicy, observation

STOP = np.zeros(ACTION_DIM, np.float32)
LIMIT = 10
FAILED = Outcome(None, CarryError("the carry is another policy's"))


def answer(ask):
    """Return a chunk with the alarm's level at the step of the ask, and a carry that names its step."""
    actions = np.full((CHUNK, ACTION_DIM), 0.5, np.float32)
    return ActionChunk(actions, signals={ALARM: ask.step / LIMIT}, carry=b"carry of %d" % ask.step)


@dataclass
class Instant:
    """Decides at once, and keeps what it was asked."""

    asks: list[Ask] = field(default_factory=list)
    outcome: Outcome | None = None

    def submit(self, seen, ask):
        self.asks.append(ask)
        self.outcome = Outcome(answer(ask))

    def collect(self, wait_s):
        outcome, self.outcome = self.outcome, None
        return outcome


def loop(on_alarm=None, strategy=None, ask=None):
    decider = Instant()
    guard = ActionGuard(ActionLimits(-np.ones(ACTION_DIM), np.ones(ACTION_DIM)), stop_action=STOP)
    ask = ask or Ask(warm_start="half")
    found = ControlLoop(decider, strategy or Synchronous(4), guard, deadline_s=60.0, ask=ask, on_alarm=on_alarm)
    found.reset(seed=0)
    return found, decider


def drive(control, steps):
    """Return which commands were the policy's."""
    return [bool(control.act(observation)[0] == 0.5) for _ in range(steps)]


def alarms(control):
    return [event.step for event in control.events if event.kind == "alarm"]


def test_the_policy_is_told_the_step_and_the_alarm_is_noted_once():
    control, decider = loop()
    assert all(drive(control, 24))
    assert [ask.step for ask in decider.asks] == [0, 4, 8, 12, 16, 20]
    assert alarms(control) == [12]
    control.reset(seed=1)
    drive(control, 16)
    assert [ask.step for ask in decider.asks[6:]] == [0, 4, 8, 12]
    assert alarms(control) == [12, 12]


def test_hold_stands_still_until_somebody_says_go_on():
    control, decider = loop("hold")
    assert drive(control, 20) == [True] * 12 + [False] * 8
    assert len(decider.asks) == 4
    assert control.ledger.counts["alarm"] == CHUNK
    control.resume()
    assert all(drive(control, 8))
    assert decider.asks[4].carry is None, "the world is another one after help"
    assert decider.asks[5].carry == b"carry of 20"
    assert alarms(control) == [12]
    control.reset(seed=1)
    assert drive(control, 13) == [True] * 12 + [False]


def test_slowing_down_executes_fewer_actions_of_a_chunk():
    control, decider = loop(1)
    assert all(drive(control, 16))
    assert [ask.step for ask in decider.asks] == [0, 4, 8, 12, 13, 14, 15]
    counts = control.ledger.counts
    assert sum(counts.values()) == 7 * CHUNK, "every action has one fate"
    assert counts["executed"] == 16


def test_a_function_is_called_once_for_help():
    called = []
    control, _ = loop(called.append)
    assert all(drive(control, 24))
    assert [chunk.signals[ALARM] for chunk in called] == [1.2]


@pytest.mark.parametrize(("on_alarm", "strategy"), [(0, None), (2, Background(2))])
def test_slowing_down_needs_an_action_and_a_robot_that_waits(on_alarm, strategy):
    with pytest.raises(ConfigError, match="execute at least 1 action"):
        loop(on_alarm, strategy)


@pytest.mark.parametrize("on_alarm", ["slow", True, 1.5])
def test_what_is_no_way_to_react_is_refused(on_alarm):
    with pytest.raises(ConfigError, match="it is 'hold', a number of actions, a function"):
        loop(on_alarm)


def test_a_policy_without_an_alarm_is_told_once(caplog):
    for on_alarm, times in (("hold", 1), (None, 0)):
        caplog.clear()
        control, decider = loop(on_alarm)
        decider.submit = lambda seen, ask, decider=decider: setattr(
            decider, "outcome", Outcome(ActionChunk(np.full((CHUNK, ACTION_DIM), 0.5, np.float32)))
        )
        assert all(drive(control, 12))
        assert caplog.text.count("the policy has no alarm") == times


def test_a_new_episode_starts_cold():
    control, decider = loop()
    drive(control, 8)
    assert [ask.carry for ask in decider.asks] == [None, b"carry of 0"]
    control.reset(seed=1)
    drive(control, 8)
    assert [ask.carry for ask in decider.asks[2:]] == [None, b"carry of 0"]


def test_after_an_answer_that_failed_the_next_one_starts_cold():
    control, decider = loop()
    drive(control, 5)
    assert decider.asks[-1].carry == b"carry of 0"
    decider.outcome = None
    decider.submit = lambda seen, ask: (decider.asks.append(ask), setattr(decider, "outcome", FAILED))
    drive(control, 5)
    del decider.submit
    drive(control, 3)
    assert [ask.carry for ask in decider.asks[2:5]] == [b"carry of 4", None, None]
    assert "another policy's" in next(event.detail for event in control.events if event.kind == "failed")


def test_an_executor_tells_the_step_within_the_stage():
    steps = []

    class Noting(FakePolicy):
        def infer(self, seen, ask):
            steps.append(ask.step)
            return answer(ask)

    executor = Executor(Noting(), Synchronous(4), Ask(warm_start="half"))
    for _ in range(10):
        executor.act(observation)
    executor.next_stage()
    for _ in range(5):
        executor.act(observation)
    assert steps == [0, 4, 8, 0, 4]
