"""How outcomes become scores: success rates of single goals, stages in a row of chains."""

import pytest
from test_eval_records import episode

from rdvla.cli.eval import format_tables
from rdvla.eval.intervals import bootstrap_mean
from rdvla.eval.records import StageRecord, parse_line, to_line
from rdvla.eval.summary import summarise, summarise_group

GOALS = ("open", "push", "lift")


def chain(solved, **changes):
    """Return an episode that solved the first `solved` of three goals."""
    begun = GOALS[: solved + 1]
    stages = tuple(StageRecord(name=g, instruction=f"{g} it", steps=3, solved=i < solved) for i, g in enumerate(begun))
    return episode(num_stages=3, stages=stages, success=solved == 3, init_state=changes.pop("init_state", 0), **changes)


CHAINS = [chain(solved, init_state=number) for number, solved in enumerate((3, 3, 1, 0))]


def test_chains_are_scored_by_stages_in_a_row():
    score = summarise_group(CHAINS).chain
    assert [rate.value for rate in score.at_least] == [0.75, 0.5, 0.5]
    assert score.average.value == 7 / 4
    assert score.average.low < 7 / 4 < score.average.high
    assert {name: (rate.successes, rate.n) for name, rate in score.goals.items()} == {
        "lift": (2, 2),
        "open": (3, 4),
        "push": (2, 3),
    }


def test_single_goals_have_a_success_rate_only():
    summary = summarise_group([episode(), episode(init_state=1, success=False)])
    assert summary.chain is None
    assert summary.rate.value == 0.5
    assert "chain" not in summary.as_json()


def test_the_summary_file_holds_the_scores():
    (rule,) = summarise(CHAINS)["rules"]
    assert rule["chain"]["average"] == 7 / 4
    assert [entry["successes"] for entry in rule["chain"]["at_least"]] == [3, 2, 2]
    assert rule["chain"]["goals"]["push"]["n"] == 3


def test_only_chains_are_scored_and_scenes_are_not_mixed():
    others = [episode(init_state=number, success=False) for number in range(12)]
    assert summarise_group([*CHAINS, *others]).chain == summarise_group(CHAINS).chain
    elsewhere = [record.model_copy(update={"suite": "another", "stages": (), "success": False}) for record in CHAINS]
    assert summarise_group([*CHAINS, *elsewhere]).chain is None
    first, second = summarise([*CHAINS, *elsewhere])["suites"]
    assert (first["chain"]["average"], second["chain"]["average"]) == (7 / 4, 0)
    lines = format_tables([*CHAINS, *elsewhere]).splitlines()
    assert [line.split(",")[0] for line in lines if "another, " in line or f"{CHAINS[0].suite}, " in line][:2] == [
        CHAINS[0].suite,
        "another",
    ]


@pytest.mark.parametrize(("solved", "ends"), [(3, ("low", 3)), (0, ("high", 0))])
def test_chains_that_are_all_alike_leave_room_for_others(solved, ends):
    name, extreme = ends
    few, many = (
        summarise_group([chain(solved, init_state=number) for number in range(n)]).chain.average for n in (1, 100)
    )
    assert few.value == many.value == extreme
    assert 0 <= few.low < few.high <= 3
    assert abs(getattr(few, name) - extreme) > 1 > 3 * abs(getattr(many, name) - extreme) > 0


def test_the_interval_of_a_mean_shrinks_and_is_the_same_every_time():
    few, many = bootstrap_mean([0, 1, 5, 5]), bootstrap_mean([0, 1, 5, 5] * 100)
    assert few.value == many.value == 2.75
    assert many.high - many.low < 0.2 * (few.high - few.low)
    assert bootstrap_mean([0, 1, 5, 5]) == few
    assert bootstrap_mean([2, 2, 2]).low == bootstrap_mean([2, 2, 2]).high == 2
    # 400 values of deviation 2.28: the interval is about 1.96 deviations of the mean to each side
    assert many.high - many.low == pytest.approx(2 * 1.96 * 2.278 / 20, rel=0.05)


def test_tables_show_chains_goal_by_goal():
    text = format_tables(CHAINS)
    assert "75.0%       50.0%       50.0%     1.75" in text
    assert [line.split() for line in text.splitlines() if line.startswith("push")] == [["push", "2/3"]]
    assert "in a row" not in format_tables([episode()])


def test_stages_survive_the_log():
    assert parse_line(to_line(CHAINS[2]), where="here") == CHAINS[2]
    assert "stages" not in to_line(episode())
