"""Chunks in lockstep with a simulator: strategies, injected delays, and the account of all actions."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rdvla.errors import ConfigError
from rdvla.execution import (
    Background,
    CalvinReleased,
    Decision,
    Executor,
    Ledger,
    Strategy,
    Synchronous,
    TemporalEnsembling,
    make_strategy,
)
from rdvla.horizons import make_horizon
from rdvla.policy import PLAIN, Ask, Policy, PolicyMetadata, decision_seed
from rdvla.types import ActionChunk, Observation

CHUNK = 8


class Planner(Policy):
    """Plans the number of the step: action i of a decision at step s is [s + i, number of the decision]."""

    metadata = PolicyMetadata("planner", (), state_dim=1, action_dim=2, chunk_size=CHUNK, extra={})

    def __init__(self):
        self.seeds, self.asked, self.resets = [], [], 0

    def infer(self, observation, ask=PLAIN):
        step = int(observation.state[0])
        self.seeds.append(ask.seed)
        self.asked.append(step)
        actions = np.stack([step + np.arange(CHUNK), np.full(CHUNK, len(self.asked) - 1)], axis=1)
        return ActionChunk(actions.astype(np.float32), num_recurrences=9)

    def reset(self):
        self.resets += 1


def stand_still(before):
    return np.array([-1, -1 if before is None else before[1]], np.float32)


def execute(strategy: Strategy, steps: int, *, delay: int = 0):
    """Return planner, executor, and the first entry of every action: for which step it was planned, -1 for none."""
    planner = Planner()
    executor = Executor(planner, strategy, delay=delay, stand_still=stand_still)
    executor.reset(seed=5)
    actions = [
        executor.act(lambda now=step: Observation({}, np.array([now], np.float32), "go")) for step in range(steps)
    ]
    return planner, executor, [float(action[0]) for action in actions]


def test_the_policy_looks_only_when_it_decides():
    planner, executor, planned = execute(Synchronous(3), 7)
    assert planned == [0, 1, 2, 3, 4, 5, 6]
    assert planner.asked == [0, 3, 6]
    assert planner.seeds == [decision_seed(5, k) for k in range(3)]
    assert len(set(planner.seeds)) == 3
    assert executor.executed == (3, 3, 1)


def test_a_decision_says_how_far_it_is_from_the_plan_before():
    _, executor, _ = execute(Synchronous(3), 7)  # of both columns, one differs by 1
    assert [dict(chunk.signals) for chunk in executor.decisions] == [{}, {"disagreement": 0.5}, {"disagreement": 0.5}]
    executor.next_stage()
    executor.act(lambda: Observation({}, np.array([0], np.float32), "stop"))
    _, whole, _ = execute(Synchronous(), 17)  # nothing is left to disagree with
    assert not any(chunk.signals for chunk in (executor.decisions[-1], *whole.decisions))


def test_a_horizon_rule_says_how_much_of_a_chunk_is_executed():
    planner, _, _ = execute(Synchronous(make_horizon("linear_decay")), 13)
    assert planner.asked == [0, 6, 12]  # nine iterations: six actions


def test_without_a_horizon_the_whole_chunk_is_executed():
    planner, _, _ = execute(Synchronous(), 17)
    assert planner.asked == [0, 8, 16]


def test_a_synchronous_robot_stands_still_while_it_waits():
    planner, executor, planned = execute(Synchronous(3), 13, delay=2)
    assert planner.asked == [0, 5, 10]
    assert planned == [-1, -1, 0, 1, 2, -1, -1, 5, 6, 7, -1, -1, 10]
    assert executor.executed == (3, 3, 1)


def test_in_the_background_only_the_first_answer_is_waited_for():
    planner, executor, planned = execute(Background(refill_at=4), 14, delay=2)
    assert planned == [-1, -1, *range(6), *range(8, 14)]  # the first plan begins where the robot stood still
    assert planner.asked == [0, 6, 10]
    assert executor.ledger.counts["already_due"] == 4
    assert executor.executed == (6, 4, 2)


def test_a_background_strategy_that_asks_too_late_stands_still():
    _, _, planned = execute(Background(refill_at=1), 12, delay=3)
    assert planned == [-1, -1, -1, *range(8), -1]


def test_ensembling_asks_as_often_as_answers_come():
    planner, _, planned = execute(TemporalEnsembling(every=1), 10, delay=3)
    assert planner.asked == [0, 4, 7]
    late = np.average([0, 3], weights=[1, np.exp(-0.01)])  # the second plan counts the steps of standing still
    assert planned == pytest.approx([-1, -1, -1, 0, 1, 2, 3, 4 + late, 5 + late, 6 + late])


def test_the_released_calvin_rule_is_what_was_published():
    """Block of ten steps; of the decisions at its first three steps: mean of equal weights, in the published order."""
    planner, executor, planned = execute(CalvinReleased(), 20)
    assert planner.asked == [0, 1, 2, 10, 11, 12]
    order = [0, 1, 2, 2, 3, 4, 5, 6, 8, 9]
    assert planned == pytest.approx([*order, *(10 + step for step in order)])
    assert executor.executed == (7, 7, 7, 7, 7, 7)
    assert +executor.ledger.counts == Counter({"executed": 42, "beyond_horizon": 6})


@pytest.mark.parametrize(
    ("openings", "expected"),
    [((0.9, 0.9, 0.4), [1] * 9 + [-1]), ((0.45, 0.45, 0.9), [-1, -1] + [1] * 8), (None, [1, -1] + [-1] * 7 + [-1])],
)
def test_the_released_calvin_rule_weighs_equally_and_rounds_the_gripper_last(openings, expected):
    """Without openings, the rounded gripper (open, closed, closed) is averaged; a tie closes."""

    class Differing(Planner):
        def infer(self, observation, ask=PLAIN):
            super().infer(observation, ask)
            number = len(self.asked) - 1
            opens = number == 0 if openings is None else openings[number] > 0.5
            actions = np.full((CHUNK, 2), [10.0**number, 1 if opens else -1], np.float32)
            return ActionChunk(actions, opening=None if openings is None else np.full(CHUNK, openings[number]))

    executor = Executor(Differing(), CalvinReleased())
    executor.reset()
    actions = [executor.act(lambda: Observation({}, np.zeros(1, np.float32), "go")) for _ in range(10)]
    means = [1, 11 / 2, *[111 / 3] * 6, 110 / 2, 100]
    np.testing.assert_allclose([action[0] for action in actions], means, rtol=1e-6)
    assert [action[1] for action in actions] == expected


@pytest.mark.parametrize("delay", [0, 1, 3, 6])
@pytest.mark.parametrize(
    "name",
    ["synchronous", "background", "background:1", "background:7", "ensembling", "ensembling:3", "calvin_released"],
)
def test_every_action_of_every_decision_is_accounted_for_once(name, delay):
    planner, executor, _ = execute(make_strategy(name, make_horizon("5")), 97, delay=delay)
    ledger = executor.ledger
    executor.next_stage()
    fates = Counter((entry.decision, entry.index) for entry in ledger.entries)
    assert fates == Counter({(number, index): 1 for number in range(len(planner.asked)) for index in range(CHUNK)})


@pytest.mark.parametrize("opens", [-1.0, 1.0])
@pytest.mark.parametrize(("opening", "expected"), [(0.9, 1), (0.1, -1)])
def test_calvin_released_keeps_the_policys_gripper(opens, opening, expected):
    """An open LIBERO gripper is -1: averaging must not turn it round."""

    class Holding(Planner):
        def infer(self, observation, ask=PLAIN):
            actions = np.full((CHUNK, 1), opens * expected, np.float32)
            return ActionChunk(actions, 1, opening=np.full(CHUNK, opening, np.float32))

    executor = Executor(Holding(), CalvinReleased())
    executor.reset(seed=1)
    sent = [executor.act(lambda: Observation({}, np.zeros(1, np.float32), "go"))[-1] for _ in range(10)]
    assert set(map(float, sent)) == {opens * expected}


def test_calvin_released_takes_chunks_of_eight():
    class Long(Planner):
        def infer(self, observation, ask=PLAIN):
            return ActionChunk(np.zeros((16, 1), np.float32), 1)

    executor = Executor(Long(), CalvinReleased())
    executor.reset(seed=1)
    with pytest.raises(ConfigError, match="executes chunks of 8 actions, found 16"):
        executor.act(lambda: Observation({}, np.zeros(1, np.float32), "go"))


@pytest.mark.parametrize("name", ["background:4", "ensembling:2", "calvin_released"])
def test_a_new_stage_begins_without_the_old_ones_actions(name):
    planner = Planner()
    executor = Executor(planner, make_strategy(name), delay=2, stand_still=stand_still)
    executor.reset(seed=1)
    for step in range(9):
        executor.act(lambda now=step: Observation({}, np.array([now], np.float32), "go"))
    before = len(executor.decisions)
    executor.next_stage()
    action = executor.act(lambda: Observation({}, np.array([50], np.float32), "on"))
    assert action[0] == -1, "nothing of the new stage has come yet"
    assert planner.asked[-1] == 50
    assert planner.seeds[before] == decision_seed(1, before)
    assert planner.resets == 2


@pytest.mark.parametrize("horizon", [3, "3", np.int64(3)])
def test_a_horizon_may_be_a_number_or_a_name(horizon):
    executor = Executor(Planner(), Synchronous(horizon))
    for _ in range(4):
        executor.act(lambda: Observation({}, np.zeros(1, np.float32), "on"))
    assert executor.executed == (3, 1)


@pytest.mark.parametrize("name", ["synchron", "background:x", "background:", "synchronous:3", "background:0", "a:1"])
def test_unknown_strategies_are_refused(name):
    with pytest.raises(ConfigError, match=r"strategy|at least 1"):
        make_strategy(name)


def test_a_delay_that_no_strategy_can_bridge_is_refused():
    with pytest.raises(ConfigError, match="only the strategy 'synchronous'"):
        Executor(Planner(), Background(), delay=CHUNK, stand_still=stand_still)
    Executor(Planner(), Synchronous(), delay=CHUNK, stand_still=stand_still)
    with pytest.raises(ConfigError, match="stand still"):
        Executor(Planner(), Synchronous(), delay=1)
    with pytest.raises(ConfigError, match="delay = -1"):
        Executor(Planner(), Synchronous(), delay=-1)


class Carrying(Planner):
    """Leaves the number of the step to the next decision."""

    def __init__(self):
        super().__init__()
        self.carries = []

    def infer(self, observation, ask=PLAIN):
        self.carries.append(ask.carry)
        return replace(super().infer(observation, ask), carry=b"%d" % self.asked[-1])


def test_a_carry_goes_to_the_next_decision_of_the_same_stage_and_episode():
    planner = Carrying()
    executor = Executor(planner, Synchronous(3), Ask(warm_start="half"))

    def play(steps):
        for step in range(steps):
            executor.act(lambda now=step: Observation({}, np.array([now], np.float32), "go"))

    executor.reset(seed=5)
    play(7)
    assert planner.carries == [None, b"0", b"3"]
    executor.next_stage()
    play(4)
    executor.reset(seed=6)
    play(1)
    assert planner.carries[3:] == [None, b"0", None]


@pytest.mark.parametrize("every", [0, 1.5, float("nan"), "2"])
def test_ensembling_asks_every_so_many_whole_steps(every):
    with pytest.raises(ConfigError, match="every must be a whole number of at least 1 step"):
        TemporalEnsembling(every=every)


def test_ensembling_keeps_dimensions_that_actions_have():
    chunk = ActionChunk(np.zeros((8, 7), np.float32))
    with pytest.raises(ConfigError, match=r"newest \[7\] must be dimensions of an action of 7 values"):
        TemporalEnsembling(newest=(7,)).add(Decision(0, 0, chunk), 0, Ledger())
