"""`rdvla report A --against B`: which episodes are compared, what is refused, what is named."""

import json

import pytest
import typer
from typer.testing import CliRunner

from rdvla.cli.report import report_command
from rdvla.errors import ConfigError, RecordError
from rdvla.report.against import compare_runs
from rdvla.report.load import group_runs, load_runs
from report_fakes import ADAPTIVE, DEPTHS, edit, write_run

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(report_command)


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def runs(tmp_path):
    deep = write_run(tmp_path / "deep", stops=(DEPTHS[4],), episodes=10)
    adaptive = write_run(tmp_path / "adaptive", stops=(ADAPTIVE,), episodes=12)
    return adaptive, deep


def test_two_runs_on_the_command_line(runs, tmp_path):
    adaptive, deep = runs
    text = call(adaptive, "--against", deep, "--output", tmp_path / "page.html", "--json", tmp_path / "numbers.json")
    assert "action_l2 < 0.001  against  depth 12" in text
    assert "40 episodes of 4 tasks" in text
    assert "iterations per decision -" in text
    times = [line for line in text.splitlines() if "ms per decision (decide) -" in line]
    assert [line.endswith("not played in turns: machines drift") for line in times] == [True]
    assert "also differs" not in text
    page = (tmp_path / "page.html").read_text()
    assert "action_l2 &lt; 0.001 against depth 12" in page
    assert "exact McNemar test" in page
    numbers = json.loads((tmp_path / "numbers.json").read_text())["comparisons"][0]
    comparison = numbers["comparison"]
    first, second = (
        {(r.task_id, r.start): r.success for r in load_runs([folder])[0].records} for folder in (adaptive, deep)
    )
    assert comparison["wins"] == sum(first[key] and not second[key] for key in second)
    assert comparison["losses"] == sum(second[key] and not first[key] for key in second)
    assert comparison["n"] == 40
    assert numbers["in_turns"] is False
    assert set(comparison["ratios"]["ms per decision"]) == {"value", "low", "high"}


def test_policies_of_the_same_name_are_told_apart(tmp_path):
    first, second = (
        write_run(tmp_path / name / "eval", stops=(DEPTHS[4],), policy=f"runs/{name}/policy", policy_digest=name * 16)
        for name in "xy"
    )
    both = load_runs([first, second])
    assert [series.label for series in group_runs(both)] == ["policy (x/eval)", "policy (y/eval)"]
    (found,) = compare_runs(both, both, baseline="policy (y/eval), depth 12")
    assert found.name == "policy (x/eval), depth 12"
    (found,) = compare_runs(both[:1], both[1:])
    assert found.name == "policy, depth 12", "of another policy, though both are called the same"


def test_a_path_among_the_options_is_no_name(tmp_path):
    run = write_run(tmp_path / "run", stops=(DEPTHS[4],), policy="runs/lora (base=/models/vlm)")
    assert group_runs(load_runs([run]))[0].label == "lora (base=/models/vlm)"


def test_rules_of_one_run_against_one_of_them(tmp_path):
    run = write_run(tmp_path / "run", stops=(*DEPTHS[:2], ADAPTIVE))
    with pytest.raises(ConfigError, match=r"no rule 'fixed\(3\)'. Did you mean"):
        call(run, "--baseline", "fixed(3)", "--output", tmp_path / "page.html")
    for name in ("fixed(1)", "depth 1"):
        text = call(run, "--baseline", name, "--output", tmp_path / "page.html")
        assert [line.split("  ")[0] for line in text.splitlines() if "  against  " in line] == [
            "depth 2",
            "action_l2 < 0.001",
        ]
        assert "ms per decision" in text
        assert "machines drift" not in text
    with pytest.raises(ConfigError, match="several rules; name one with --baseline"):
        call(run, "--against", run, "--output", tmp_path / "page.html")


def test_what_differs_beside_the_rule_is_named(runs):
    adaptive, deep = runs
    edit(deep, lambda record: {**record, "horizon": "4", "versions": {**record["versions"], "torch": "2.12.0"}})
    found = compare_runs(load_runs([adaptive]), load_runs([deep]))[0]
    assert found.differences == ("execution: 5 against 4", "torch: 2.13.0 against 2.12.0")


def test_a_damaged_run_file_is_named(runs):
    adaptive, _ = runs
    for content in ('{"tasks": null}', '{"config": 1}', '{"command": "rdvla"}', "[]", "nothing"):
        (adaptive / "run.json").write_text(content)
        with pytest.raises(RecordError, match=r"run\.json' .*evaluate again into another folder"):
            load_runs([adaptive])


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    adaptive, deep = runs
    with pytest.raises(ConfigError, match="no rule to compare"):
        compare_runs(load_runs([deep]), load_runs([deep]))
    edit(deep, lambda record: {**record, "protocol": "short"})
    with pytest.raises(ConfigError, match="different protocols"):
        compare_runs(load_runs([adaptive]), load_runs([deep]))
    edit(deep, lambda record: {**record, "protocol": "", "seed": 8})
    with pytest.raises(ConfigError, match="no episode in common"):
        compare_runs(load_runs([adaptive]), load_runs([deep]))
    for option in (("--json", tmp_path / "x.json"), ("--margin", "0.1")):
        with pytest.raises(ConfigError, match="--json and --margin belong to a comparison"):
            call(adaptive, *option, "--output", tmp_path / "page.html")


def test_pairs_that_one_evaluation_each_played_in_turns(tmp_path):
    both = [
        write_run(tmp_path / name, stops=(DEPTHS[4], ADAPTIVE), n_tasks=2, episodes=3, seed=seed)
        for name, seed in (("first", 7), ("second", 8))
    ]
    (found,) = compare_runs(load_runs(both), load_runs(both), baseline="fixed(12)")
    assert (found.comparison.n, found.in_turns) == (12, True)
    (apart,) = compare_runs(load_runs(both[:1]), load_runs([write_run(tmp_path / "later", stops=(DEPTHS[4],))]))[1:]
    assert apart.in_turns is False


def test_a_baseline_among_runs_by_name(tmp_path):
    runs = [
        write_run(tmp_path / n, stops=(DEPTHS[4],), n_tasks=n_tasks, policy_digest=n)
        for n, n_tasks in (("a", 1), ("b", 2))
    ]
    named = [f"one={runs[0]}", f"two={runs[1]}"]
    text = call(*named, "--baseline", "one, depth 12", "--output", tmp_path / "page.html")
    assert text.startswith("two, depth 12  against  depth 12")
    with pytest.raises(ConfigError, match=r"several rules 'depth 12'; name one of: one, depth 12; two, depth 12\."):
        call(*named, "--baseline", "depth 12", "--output", tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"no rule 'one, depth 13'\. Did you mean 'one, depth 12'"):
        call(*named, "--baseline", "one, depth 13", "--output", tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"of several policies"):
        call(
            *map(str, runs),
            "x=" + str(write_run(tmp_path / "c", stops=DEPTHS[4:5])),
            "--baseline",
            "tiny (a), depth 12",
            "--json",
            tmp_path / "x.json",
            "--output",
            tmp_path / "page.html",
        )
    assert not (tmp_path / "x.json").exists()


def test_chains_and_other_single_tasks_have_intervals_of_episodes(tmp_path):
    run = write_run(tmp_path / "run", stops=(DEPTHS[0], ADAPTIVE), n_tasks=1, episodes=20)
    text = call(run, "--baseline", "fixed(1)", "--output", tmp_path / "page.html")
    assert "20 episodes of 1 task: " in text
    assert "; resampling episodes " in text
    (found,) = compare_runs(load_runs([run]), load_runs([run]), baseline="fixed(1)")
    assert found.comparison.ratios["decisions per episode"].low < found.comparison.ratios["decisions per episode"].high


def test_one_episode_with_two_ends_is_no_one_s(tmp_path):
    first, second = (write_run(tmp_path / name, stops=(DEPTHS[4],), n_tasks=1, episodes=2) for name in "ab")
    assert group_runs(load_runs([first, second]))[0].rules[0].summary.rate.n == 2, "the same twice is counted once"
    edit(second, lambda record: record | {"success": not record["success"]})
    with pytest.raises(ConfigError, match=r"a' and '.*b' both hold .*played differently \((success|failure) after"):
        group_runs(load_runs([first, second]))


def test_a_rule_is_not_compared_with_its_own_episodes(tmp_path):
    """Not where a second horizon gives it another label, nor where it was played in two parts."""
    first = write_run(tmp_path / "a", stops=(DEPTHS[4], ADAPTIVE), n_tasks=2, episodes=2)
    other = write_run(tmp_path / "b", stops=(DEPTHS[4],), n_tasks=2, episodes=2, horizons=("8",))
    found = compare_runs(load_runs([first, other]), load_runs([first]), baseline="fixed(12)")
    assert [(each.name.split(",")[0], each.comparison.n) for each in found] == [
        ("depth 12", 4),
        ("action_l2 < 0.001", 4),
    ]
    assert found[0].differences == ("execution: 8 against 5",)
    more = edit(
        write_run(tmp_path / "c", stops=(DEPTHS[4],), n_tasks=2, episodes=2),
        lambda record: record | {"init_state": record["init_state"] + 2},
    )
    (found,) = compare_runs(load_runs([first, more]), load_runs([first]), baseline="fixed(12)")
    assert found.name == "action_l2 < 0.001"


def test_a_rule_without_a_common_episode_does_not_take_the_others_away(tmp_path, caplog):
    first = write_run(tmp_path / "a", stops=(DEPTHS[4],), n_tasks=2, episodes=2)
    alike = write_run(tmp_path / "b", stops=(DEPTHS[1],), n_tasks=2, episodes=2)
    apart = edit(
        write_run(tmp_path / "c", stops=(ADAPTIVE,), n_tasks=2, episodes=2),
        lambda record: record | {"init_state": record["init_state"] + 2},
    )
    (found,) = compare_runs(load_runs([alike, apart]), load_runs([first]))
    assert found.name == "depth 2"
    assert "depth 12 (initial states 0-1): action_l2 < 0.001 (initial states 2-3)" in caplog.text
    with pytest.raises(
        ConfigError, match=r"with depth 12, initial states 0-1: action_l2 < 0.001 \(initial states 2-3\)"
    ):
        compare_runs(load_runs([apart]), load_runs([first]))
