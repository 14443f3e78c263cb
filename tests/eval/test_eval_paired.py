"""Paired statistics against closed forms, published figures, exact coverage and simulated power."""

import math

import numpy as np
import pytest

from rdvla.errors import ConfigError
from rdvla.eval.intervals import Z_95
from rdvla.eval.paired import Pair, Side, Tasks, compare, holm, mcnemar, tango


def pairs_of(wins, losses, both, neither=0, *, tasks=10, totals=({"decisions": 1.0}, {"decisions": 1.0})):
    outcomes = [(True, False)] * wins + [(False, True)] * losses + [(True, True)] * both + [(False, False)] * neither
    return [
        Pair(f"task {number % tasks}", Side(first, totals[0]), Side(second, totals[1]))
        for number, (first, second) in enumerate(outcomes)
    ]


def test_the_score_interval_has_its_closed_form_without_disagreement():
    for n in (1, 20, 400):
        expected = Z_95**2 / (n + Z_95**2)
        assert tango(0, 0, n) == pytest.approx((-expected, expected), abs=1e-9)


@pytest.mark.parametrize(("wins", "losses", "n"), [(12, 2, 50), (3, 3, 40), (0, 5, 30), (11, 17, 500), (20, 0, 20)])
def test_the_score_interval_is_symmetric_and_contains_what_was_seen(wins, losses, n):
    low, high = tango(wins, losses, n)
    assert tango(losses, wins, n) == pytest.approx((-high, -low), abs=1e-9)
    assert -1 <= low <= (wins - losses) / n <= high <= 1


@pytest.mark.parametrize(("p_win", "p_loss"), [(0.1, 0.1), (0.05, 0.15), (0.02, 0.02), (0.3, 0.1)])
def test_the_score_interval_covers_the_truth_in_95_of_100_experiments(p_win, p_loss):
    """Every possible outcome of 40 pairs, weighted by its probability."""
    n, covered = 40, 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            rest = n - wins - losses
            ways = math.factorial(n) // (math.factorial(wins) * math.factorial(losses) * math.factorial(rest))
            chance = ways * p_win**wins * p_loss**losses * (1 - p_win - p_loss) ** rest
            if chance > 1e-9:
                low, high = tango(wins, losses, n)
                covered += chance * (low <= p_win - p_loss <= high)
    assert 0.93 < covered < 0.995


def test_figures_of_a_published_comparison():
    """Warm start on LIBERO-Spatial: 17 lost, 11 won of 500, p = 0.35, not inferior at 5 points."""
    found = compare(pairs_of(11, 17, 443, 29))
    assert (found.n, found.tasks, found.wins, found.losses) == (500, 10, 11, 17)
    assert found.p_value == pytest.approx(0.345, abs=1e-3) == mcnemar(17, 11)
    assert found.difference.value == pytest.approx(-0.012)
    assert found.verdict == "non-inferior"
    assert found.more == 0


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [((30, 2, 68), "better"), ((2, 30, 68), "worse"), ((0, 0, 200), "non-inferior"), ((4, 6, 40), "undecided")],
)
def test_verdicts(outcome, verdict):
    found = compare(pairs_of(*outcome))
    assert found.verdict == verdict
    assert (found.more > 0) == (verdict == "undecided")


def test_a_small_loss_that_is_certain_is_not_inferior_at_a_large_margin():
    pairs = pairs_of(0, 40, 960)
    assert compare(pairs, margin=0.05).difference.high < 0
    assert compare(pairs, margin=0.06).verdict == "non-inferior"
    assert compare(pairs, margin=0.03).verdict == "worse"


def test_episodes_of_a_task_that_resemble_each_other_widen_the_interval():
    spread = compare(pairs_of(20, 20, 160))
    lumped = [
        Pair(f"task {task}", Side(task >= 2, {}), Side(task < 1 or task >= 3, {}))
        for task in range(10)
        for _ in range(20)
    ]
    together = compare(lumped)
    assert (together.wins, together.losses) == (20, 40 - 20)
    assert together.by_task.high - together.by_task.low > 3 * (spread.by_task.high - spread.by_task.low)
    assert together.needed > 9 * spread.needed
    assert together.verdict == "undecided"


def test_that_many_episodes_give_a_verdict_in_four_of_five_experiments():
    rng = np.random.default_rng(3)
    needed = compare(pairs_of(20, 20, 360, tasks=40)).needed
    verdicts = []
    for _ in range(150):
        draws = rng.choice(3, size=needed, p=[0.05, 0.05, 0.9])
        counts = np.bincount(draws, minlength=3).tolist()
        pairs = pairs_of(*counts)
        order = rng.permutation(needed)
        pairs = [
            Pair(f"task {number % 40}", pairs[place].first, pairs[place].second) for number, place in enumerate(order)
        ]
        verdicts.append(compare(pairs).verdict in ("non-inferior", "better"))
    assert 0.68 < np.mean(verdicts) < 0.92


def test_where_enough_was_played_for_equals_the_difference_itself_says_how_many_more():
    found = compare(pairs_of(6, 14, 280, tasks=300))
    assert found.verdict == "undecided"
    assert found.needed < found.n == 300
    assert 300 < found.more < 600
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        wins, losses, rest = rng.multinomial(300 + found.more, [6 / 300, 14 / 300, 280 / 300])
        told += compare(pairs_of(wins, losses, rest, tasks=40)).verdict != "undecided"
    assert told > 0.7 * 60


def test_savings_by_hand():
    first = {"decisions": 10.0, "iterations": 50.0, "ms": 300.0}
    second = {"decisions": 8.0, "iterations": 64.0, "ms": 400.0, "decodings": 9.0}
    found = compare(pairs_of(1, 1, 8, totals=(first, second))).ratios
    expected = {
        "iterations per decision": 5 / 8 - 1,
        "decisions per episode": 10 / 8 - 1,
        "iterations per episode": 50 / 64 - 1,
        "ms per decision": 30 / 50 - 1,
        "ms per episode": 300 / 400 - 1,
    }
    assert {name: ratio.value for name, ratio in found.items()} == pytest.approx(expected)
    assert all(ratio.low == pytest.approx(ratio.value) == pytest.approx(ratio.high) for ratio in found.values())


def test_nothing_to_compare_is_said():
    with pytest.raises(ConfigError, match="no episode in common"):
        compare([])
    with pytest.raises(ConfigError, match="margin"):
        compare(pairs_of(1, 1, 1), margin=5)


def test_of_one_task_episodes_are_resampled():
    """Chains are one task: an interval without width would call every difference certain."""
    values = [1.0] * 30 + [0.0] * 10
    single = Tasks(["calvin_d 0"] * 40)
    assert single.count == 1
    among = Tasks([str(number) for number in range(40)]).mean(values)
    assert single.mean(values) == among
    assert among.low < 0.65 < 0.85 < among.high
    together = Tasks(["a"] * 40, episodes=[number // 10 for number in range(40)]).mean(values)  # four long episodes
    assert (together.low, together.high) == (0.25, 1.0)
    assert Tasks(["a", "b"] * 20, episodes=range(40)).count == 2
    found = compare(pairs_of(6, 1, 30, 3, tasks=1))
    assert found.tasks == 1
    assert found.by_task.low < found.by_task.value < found.by_task.high


def test_a_great_loss_is_told_soon():
    few, many = compare(pairs_of(0, 3, 1, tasks=4)), compare(pairs_of(2, 8, 30, tasks=4))
    assert (few.difference.value, many.difference.value) == (-0.75, -0.15)
    assert few.verdict == many.verdict == "undecided"
    assert few.more < 10 < 2000 < few.needed
    assert many.more < 100 < 800 < many.needed


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
