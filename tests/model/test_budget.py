"""A time budget buys as many iterations as fit, whatever they cost; a clock that only the stages move tells."""

import itertools

import pytest
import torch

from rdvla.model.budget import Costs, Timer
from rdvla.model.decide import decide
from rdvla.model.stopping import make_criterion
from rdvla.stops import StopRule

ENCODE, ITERATION, DECODE = 5.0, 2.0, 1.0
FIXED = StopRule.fixed(40)
ALWAYS_LOOKS = StopRule("action_mse", threshold=0.0, max_depth=40)


class Fake:
    """Stands for the clock, the head and its conditioning. Scratchpads count iterations; actions shrink with them."""

    def __init__(self, iterations=None):
        self.now = 0.0
        self.iterations = iter(iterations or itertools.repeat(ITERATION))
        self.looks = 0

    def __call__(self):
        return self.now

    def core(self, latents, conditioning):
        self.now += next(self.iterations)
        return latents + 1

    def coda(self, latents, conditioning):
        self.now += DECODE
        self.looks += 1
        return 0.5**latents

    def both(self, before, after, conditioning):
        actions = self.coda(torch.cat((before, after)), conditioning)
        self.now += DECODE
        return actions.chunk(2)

    def select(self, rows):
        return self


def run(fake, rule, budget, costs=None, batch=1):
    """Decide within `budget`, encoding included; return the decision and when it was there."""
    start = fake.now
    timer = Timer(budget, costs, fake)
    fake.now += ENCODE
    timer.lap("encode")
    latents = torch.arange(batch).reshape(batch, 1, 1) * 3.0
    decision = decide(fake, fake, latents, make_criterion(rule), rule, timer=timer)
    return decision, fake.now - start


@pytest.mark.parametrize("budget", [8.0, 9.9, 10.0, 13.0, 30.5, 84.9])
def test_known_costs_fill_the_budget_exactly(budget):
    decision, seconds = run(Fake(), FIXED, budget, Costs(ENCODE, ITERATION, DECODE))
    assert int(decision.num_recurrences) == (budget - ENCODE - DECODE) // ITERATION
    assert budget - ITERATION < seconds <= budget
    assert decision.out_of_time.tolist() == [True]


def test_a_budget_for_more_than_the_rule_wants_changes_nothing():
    decision, _ = run(Fake(), FIXED, 86.0, Costs(ENCODE, ITERATION, DECODE))
    assert int(decision.num_recurrences) == 40
    assert decision.out_of_time.tolist() == [False]


@pytest.mark.parametrize("budget", [0.001, 5.0, 7.9])
@pytest.mark.parametrize("rule", [FIXED, ALWAYS_LOOKS])
def test_a_budget_that_is_too_small_buys_one_iteration(budget, rule):
    decision, seconds = run(Fake(), rule, budget, Costs(ENCODE, ITERATION, DECODE))
    assert decision.num_recurrences.tolist() == [1]
    assert decision.out_of_time.tolist() == [True]
    assert decision.actions.item() == 0.5
    assert seconds == ENCODE + ITERATION + DECODE


@pytest.mark.parametrize("rule", [FIXED, ALWAYS_LOOKS, StopRule("action_mse", threshold=0.0, check_every=3)])
@pytest.mark.parametrize("budget", [9.0, 16.0, 27.0])
def test_the_first_decision_of_all_is_no_later_than_one_iteration(rule, budget):
    _, seconds = run(Fake(), rule, budget)
    assert budget - 2 * (ITERATION + DECODE) <= seconds <= budget + ITERATION


@pytest.mark.parametrize("rule", [FIXED, ALWAYS_LOOKS])
@pytest.mark.parametrize("slow_from", range(8))
def test_iterations_that_become_four_times_as_slow_cost_at_most_one_of_them(rule, slow_from):
    slow = 4 * ITERATION
    costs = [ITERATION] * slow_from + [slow] * 40
    _, seconds = run(Fake(costs), rule, 20.0, Costs(ENCODE, ITERATION, DECODE))
    assert seconds <= 20.0 + slow


def test_costs_follow_the_machine_up_and_down():
    costs = Costs()
    first = [int(run(Fake(), FIXED, 27.0, costs)[0].num_recurrences) for _ in range(2)]
    busy = [int(run(Fake(itertools.repeat(5.0)), FIXED, 27.0, costs)[0].num_recurrences) for _ in range(2)]
    again = [int(run(Fake(), FIXED, 27.0, costs)[0].num_recurrences) for _ in range(2)]
    assert first[1] == again[1] == 10
    assert busy[1] == 4
    assert costs.encode == ENCODE
    assert costs.iteration == pytest.approx(ITERATION, rel=0.01)


def test_convergence_may_end_it_earlier_per_sample():
    rule = StopRule("action_mse", threshold=1e-4, max_depth=40)
    decision, _ = run(Fake(), rule, 20.0, Costs(ENCODE, ITERATION, DECODE), batch=2)
    assert decision.num_recurrences.tolist() == [5, 4]  # the second starts three halvings ahead
    assert decision.out_of_time.tolist() == [True, False]
    assert decision.actions.flatten().tolist() == [0.5**5, 0.5**7]


@pytest.mark.parametrize("rule", [StopRule("latent", threshold=0.15), StopRule("action_mse", threshold=1e-4)])
def test_every_coda_is_charged_to_the_coda(rule):
    """Samples leave one after the other; what their answers take is no part of the next iteration."""
    costs = Costs()
    decision, seconds = run(Fake(), rule, 1e9, costs, batch=3)
    assert len(set(decision.num_recurrences.tolist())) == 3
    assert (costs.encode, costs.iteration, costs.decode) == (ENCODE, ITERATION, DECODE)
    deepest = int(decision.num_recurrences.max())
    codas = 3 if rule.name == "latent" else deepest
    assert seconds == ENCODE + deepest * ITERATION + codas * DECODE


class OnDevice(torch.Tensor):
    """A tensor of a device whose host only waits in `cpu`, and is counted; whatever else would wait is refused."""

    waits = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = function.__name__
        assert name not in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "numpy"), f"{name} waits"
        result = super().__torch_function__(function, types, args, kwargs or {})
        if name == "cpu":
            OnDevice.waits += 1
            return result.as_subclass(torch.Tensor)
        return result


@pytest.mark.parametrize(
    ("rule", "checks"),
    [
        (FIXED, 0),
        (StopRule("action_mse", threshold=0.0, max_depth=6), 5),
        (StopRule("action_mse", threshold=0.0, max_depth=6, check_every=2), 2),
        (StopRule("latent", threshold=0.26), 5),
        (StopRule("action_mse", threshold=0.0, max_depth=6, defer=1e9), 7),
        (StopRule("action_mse", threshold=0.0, max_depth=6, defer=1e-9), 5),
        (StopRule("action_mse", threshold=0.0, max_depth=6, min_depth=6, defer=1e9), 2),
    ],
)
def test_the_host_waits_once_per_check_and_never_between(rule, checks):
    """The first look has nothing to be compared with. `latent` stops the last of three samples at the sixth look.

    A gate is a check of its own, as long as it is closed for a sample that may stop (for one, zero at the second look,
    until the third).
    """
    fake, OnDevice.waits = Fake(), 0
    latents = (torch.arange(3).reshape(3, 1, 1) * -1.0).as_subclass(OnDevice)
    output = decide(fake, fake, latents, make_criterion(rule), rule)
    assert OnDevice.waits == checks
    assert isinstance(output.actions, OnDevice)


def test_two_decodings_in_one_are_charged_as_two():
    costs = Costs()
    decision, seconds = run(Fake(), StopRule("action_mse", threshold=1e-4, defer=0.3), 1e9, costs)
    depth, codas = int(decision.num_recurrences), int(decision.signals["codas"])
    assert (depth, codas) == (7, 5)  # the scratchpad counts iterations: it changes by a quarter at the fourth
    assert costs.decode == DECODE
    assert seconds == ENCODE + depth * ITERATION + codas * DECODE


@pytest.mark.parametrize("budget", [12.0, 15.0, 21.0])
def test_a_budget_leaves_time_for_both(budget):
    rule = StopRule("action_mse", threshold=0.0, max_depth=40, defer=0.3)
    decision, seconds = run(Fake(), rule, budget, Costs(ENCODE, ITERATION, DECODE))
    assert decision.out_of_time.tolist() == [True]
    assert budget - ITERATION - 2 * DECODE < seconds <= budget


def test_the_last_look_is_the_answer():
    fake = Fake()
    run(fake, StopRule("action_mse", threshold=0.0, max_depth=6), 1e9)
    assert fake.looks == 6
    fake = Fake()
    run(fake, StopRule("action_mse", threshold=0.0, max_depth=8, check_every=3), 1e9)
    assert fake.looks == 3  # at 3, 6 and the end
