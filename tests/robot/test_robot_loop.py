"""Control loops in a simulated world: latencies, jitter, drops and restarts; every action accounted for."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from patience import PATIENCE_S
from rdvla.errors import ConfigError
from rdvla.execution import Background, Strategy, Synchronous, TemporalEnsembling
from rdvla.policy import decision_seed
from rdvla.robot.client import RemotePolicy
from rdvla.robot.guard import ActionGuard, ActionLimits
from rdvla.robot.loop import ControlLoop, Pacer, ThreadedDecider
from serve_fakes import ACTION_DIM, CHUNK, FakePolicy, expected_actions, observation
from serve_simulation import FakeClock, SimulatedDecider, World, chance, jitter, marked_observation

WIDE = ActionLimits(np.full(ACTION_DIM, -1e6), np.full(ACTION_DIM, 1e6))
STOP = np.full(ACTION_DIM, -999.0, np.float32)
PERIOD_S = 0.05


@dataclass
class Run:
    loop: ControlLoop
    guard: ActionGuard
    world: World
    policy: RemotePolicy
    commands: list[np.ndarray]
    times: list[float]

    @property
    def executed(self) -> list[tuple[int, int]]:
        """The (marker, index) of every step whose command is an action of the policy."""
        return [(round(float(c[0])), round(float(c[1]))) for c in self.commands if c[0] != STOP[0]]


def simulate(
    world: World,
    strategy: Strategy,
    *,
    steps: int = 200,
    deadline_s: float = 0.5,
    policy_deadline_s: float | None = None,
    episodes: int = 1,
) -> Run:
    """Run episodes of `steps` control steps; the observation of global step k is marked k."""
    clock = FakeClock()

    def remote(thread: FakeClock) -> RemotePolicy:
        patience_s = policy_deadline_s or deadline_s
        return RemotePolicy("ws://simulated", deadline_s=patience_s, connect=world.connector(thread), clock=thread)

    decider = SimulatedDecider(clock, remote)
    guard = ActionGuard(WIDE, stop_action=STOP)
    loop = ControlLoop(decider, strategy, guard, deadline_s=deadline_s, pacer=Pacer(1 / PERIOD_S, clock), clock=clock)
    commands, times = [], []
    for episode in range(episodes):
        loop.reset(seed=episode)
        for step in range(steps):
            commands.append(loop.act(lambda now=episode * steps + step: marked_observation(now)))
            times.append(clock.now())
    loop.reset()
    policy = decider.policy
    assert isinstance(policy, RemotePolicy)
    return Run(loop, guard, world, policy, commands, times)


def check_accounts(run: Run) -> None:
    """Every step has one command; every action of every answer met exactly one fate; nothing twice or out of order."""
    fates: dict[tuple[int, int], list[str]] = defaultdict(list)
    for entry in run.loop.ledger.entries:
        fates[entry.decision, entry.index].append(entry.fate)
    assert all(len(met) == 1 for met in fates.values()), "an action was settled twice"
    events = run.loop.events
    came = {event.request for event in events if event.kind in ("answered", "late")}
    assert {number for number, _ in fates} == came
    assert len(fates) == CHUNK * len(came), "an action of an answer vanished"
    asked = [event.request for event in events if event.kind == "asked"]
    ended = Counter(event.request for event in events if event.kind in ("answered", "failed", "late"))
    assert asked == sorted(set(asked))
    in_flight = set(asked) - set(ended)
    assert len(in_flight) <= 1
    assert all(number in ended or number in in_flight for number in asked), "a request vanished"
    replaced = sum(i.kind in ("held", "stopped") for i in run.guard.interventions)
    executed_steps = {entry.step for entry in run.loop.ledger.entries if entry.fate == "executed"}
    assert replaced + len(run.executed) == len(run.commands)
    assert len(executed_steps) <= len(run.commands)


WORLDS: dict[str, Callable[[int], World]] = {
    "steady": lambda seed: World(),
    "jitter": lambda seed: World(latency=jitter(seed, 0.005, 0.2)),
    "spikes": lambda seed: World(latency=jitter(seed, 0.005, 0.1, spikes=0.15, spike_s=1.3)),
    "drops": lambda seed: World(latency=jitter(seed, 0.005, 0.08), loses=chance(seed, 0.2)),
    "restart": lambda seed: World(latency=jitter(seed, 0.01, 0.05), outages=[(2.0, 3.1), (6.0, 6.2)]),
    "all at once": lambda seed: World(
        latency=jitter(seed, 0.005, 0.3, spikes=0.05),
        loses=chance(seed, 0.1),
        outages=[(1.0, 1.3), (4.0, 6.0), (7.5, 7.6)],
    ),
}
STRATEGIES = {
    "synchronous": lambda: Synchronous(5),
    "suggested": lambda: Synchronous(),
    "background": lambda: Background(refill_at=4),
    "ensembling": lambda: TemporalEnsembling(every=2),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("world", WORLDS)
def test_every_action_is_accounted_for(world: str, strategy: str) -> None:
    for seed in range(8):
        check_accounts(simulate(WORLDS[world](seed), STRATEGIES[strategy](), episodes=2))


@pytest.mark.parametrize("world", WORLDS)
def test_synchronous_actions_come_in_order_and_once(world: str) -> None:
    for seed in range(15):
        run = simulate(WORLDS[world](seed), Synchronous(5))
        assert run.executed == sorted(set(run.executed))
        by_decision: dict[int, list[int]] = defaultdict(list)
        for marker, index in run.executed:
            by_decision[marker].append(index)
        assert all(indices == [0, 1, 2, 3, 4][: len(indices)] for indices in by_decision.values())
        assert [len(indices) for indices in by_decision.values()][:-1] == [5] * (len(by_decision) - 1)


@pytest.mark.parametrize("world", WORLDS)
def test_background_actions_are_executed_at_the_step_they_were_planned_for(world: str) -> None:
    for seed in range(15):
        run = simulate(WORLDS[world](seed), Background(refill_at=4))
        planned = [(step, round(float(c[2]))) for step, c in enumerate(run.commands) if c[0] != STOP[0]]
        assert len(planned) > 50
        assert all(step == due for step, due in planned)


def test_background_never_stands_still_when_answers_are_quick_enough() -> None:
    run = simulate(World(latency=jitter(1, 0.01, 0.19)), Background(refill_at=4))
    assert not run.guard.interventions
    assert run.loop.ledger.counts["already_due"] > 0
    assert np.diff(run.times) == pytest.approx(PERIOD_S)


def test_synchronous_stands_still_for_every_decision() -> None:
    run = simulate(World(latency=lambda: 0.12), Synchronous(5), steps=50)
    gaps = np.diff(run.times)
    assert not run.guard.interventions
    assert sorted(gaps.round(6)) == [0.05] * 40 + [0.17] * 9
    assert len(run.loop.ledger.entries) == 10 * CHUNK
    assert run.loop.ledger.counts == {"executed": 50, "beyond_horizon": 30}


def test_the_chunks_own_suggestion_is_followed() -> None:
    run = simulate(World(), Synchronous(), steps=20)
    assert [index for _, index in run.executed] == [0, 1, 2, 3, 4] * 4  # the simulated server suggests 5


def test_ensembling_averages_the_plans_oldest_first() -> None:
    """At step 20 the plans of steps 13..19 are at hand, with indices 7..1; all say 20 in dimension 2."""
    run = simulate(World(latency=lambda: 0.001), TemporalEnsembling(every=1, decay=0.5, newest=[1]), steps=30)
    weights = np.exp(-0.5 * np.arange(7))
    assert run.commands[20][0] == pytest.approx(np.average(np.arange(13, 20), weights=weights))
    assert run.commands[20][2] == pytest.approx(20)
    assert run.commands[20][1] == 1  # the newest plan's own index, not the mean
    assert run.loop.ledger.counts["executed"] == 1 + sum(min(step, 7) for step in range(1, 30))


def test_a_restart_in_the_middle_of_an_episode() -> None:
    """The server is away for 1.1 s; the guard stops the robot after the actions at hand, then it goes on."""
    run = simulate(World(outages=[(2.0, 3.1)]), Background(refill_at=4), steps=120)
    stopped = [i.step for i in run.guard.interventions]
    assert stopped == list(range(stopped[0], stopped[-1] + 1)), "one gap only"
    assert 40 <= stopped[0] <= 48
    assert stopped[-1] <= round(3.1 / PERIOD_S) + 11
    assert run.policy.reconnects == 1
    failed = [event for event in run.loop.events if event.kind in ("failed", "missed")]
    assert failed
    assert len(run.executed) == 120 - len(stopped)


def test_a_restart_shorter_than_the_deadline_costs_a_synchronous_loop_only_time() -> None:
    run = simulate(World(outages=[(2.0, 2.3)]), Synchronous(5), steps=100)
    assert not run.guard.interventions
    assert len(run.executed) == 100
    assert run.policy.reconnects == 1


def test_an_answer_after_the_deadline_is_never_executed() -> None:
    world = World(latency=jitter(0, 0.01, 0.05, spikes=0.2, spike_s=0.9))
    run = simulate(world, Background(refill_at=4), deadline_s=0.3, policy_deadline_s=5.0)
    check_accounts(run)
    late = {event.request for event in run.loop.events if event.kind == "late"}
    executed = {entry.decision for entry in run.loop.ledger.entries if entry.fate == "executed"}
    assert late
    assert not late & executed


def test_a_new_episode_forgets_the_old_ones_answers() -> None:
    run = simulate(World(latency=lambda: 0.15), Background(refill_at=4), steps=30, episodes=4)
    check_accounts(run)
    for step, command in enumerate(run.commands):
        assert command[0] == STOP[0] or command[0] >= step // 30 * 30, "an action decided in an earlier episode"


@pytest.mark.parametrize("strategy", [Background(refill_at=4), TemporalEnsembling(every=1), Synchronous(5)])
def test_an_episode_begins_with_its_own_plan_whatever_was_in_flight(strategy: Strategy) -> None:
    """The robot stands still until the first answer is there, and executes its first action first."""
    run = simulate(World(latency=lambda: 0.22), strategy, steps=30, episodes=3, deadline_s=1.0)
    check_accounts(run)
    for episode in range(3):
        first = run.commands[episode * 30]
        assert (round(float(first[0])), round(float(first[1]))) == (episode * 30, 0)


def test_decisions_are_seeded_by_episode_and_number() -> None:
    policy, seeds = FakePolicy(), []
    inner = policy.infer

    def infer(seen, ask):  # type: ignore[no-untyped-def]
        seeds.append(ask.seed)
        return inner(seen, ask)

    policy.infer = infer  # type: ignore[method-assign]
    loop = ControlLoop(
        SimulatedDecider(FakeClock(), lambda clock: policy),
        Synchronous(4),
        ActionGuard(WIDE, stop_action=STOP),
        deadline_s=1.0,
        clock=FakeClock(),
    )
    for episode in (5, 6):
        loop.reset(seed=episode)
        for _ in range(8):
            loop.act(observation)
    assert seeds == [decision_seed(5, 0), decision_seed(5, 1), decision_seed(6, 0), decision_seed(6, 1)]


def test_the_threaded_decider_runs_a_real_policy() -> None:
    decider = ThreadedDecider(FakePolicy())
    loop = ControlLoop(decider, Synchronous(CHUNK), ActionGuard(WIDE, stop_action=STOP), deadline_s=PATIENCE_S)
    loop.reset(seed=1)
    seen = observation(4)
    commands = np.stack([loop.act(lambda: seen) for _ in range(CHUNK)])
    np.testing.assert_array_equal(commands, expected_actions(seen, 12, decision_seed(1, 0)))
    decider.close()


def test_the_pacer_keeps_the_rate_and_never_bursts() -> None:
    clock = FakeClock()
    pacer = Pacer(10.0, clock)
    due = []
    for work_s in [0.05, 0.05, 0.35, 0.05, 0.05]:
        pacer.wait()
        due.append(round(clock.now(), 3))
        clock.sleep(work_s)
    assert due == [0.0, 0.1, 0.2, 0.55, 0.65]
    assert pacer.overruns == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: Synchronous(0),
        lambda: Synchronous("linear"),
        lambda: Synchronous(4.0),
        lambda: Background(0),
        lambda: Background("4"),
        lambda: TemporalEnsembling(every=0),
        lambda: TemporalEnsembling(decay=float("nan")),
        lambda: Pacer(0.0),
        lambda: Pacer(float("nan")),
        lambda: Pacer(float("inf")),
        lambda: ControlLoop(
            ThreadedDecider(FakePolicy()), Synchronous(), ActionGuard(WIDE, stop_action=STOP), deadline_s=0.0
        ),
        lambda: ControlLoop(
            ThreadedDecider(FakePolicy()), Synchronous(), ActionGuard(WIDE, stop_action=STOP), deadline_s=float("nan")
        ),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()
