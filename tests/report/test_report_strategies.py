"""`rdvla results` strategies, iterations, ablations, pro: what they compare, and what they say of it."""

import pytest

from rdvla.errors import ConfigError
from rdvla.report.load import load_runs
from rdvla.report.page import render
from rdvla.report.results.build import TABLES
from rdvla.report.results.suites import SUITES
from rdvla.stops import StopRule
from report_fakes import ADAPTIVE, edit, solve, write_run

FIXED = StopRule.fixed(12)


def test_strategies_against_the_fixed_depth(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(FIXED,), n_tasks=2, episodes=10)
    more = write_run(tmp_path / "more", stops=(ADAPTIVE,), n_tasks=2, episodes=10, horizons=("5", "binary_paper"))
    solve(run, lambda r: True)
    solve(more, lambda r: r["horizon"] == "5" or r["init_state"] > 7)
    found, page = results("strategies", run, more)
    fixed, adaptive, binary = found["tables"][0]["rows"]
    assert [row[""] for row in (fixed, adaptive, binary)] == [
        "depth 12, 5 actions",
        "action_l2 < 0.001, 5 actions",
        "action_l2 < 0.001, binary_paper",
    ]
    assert adaptive["success"]["successes"] == 20
    against = binary["against depth 12, 5 actions, points"]
    assert (against["losses"], against["n"]) == (16, 20)
    played = [record for record in load_runs([more])[0].records if record.horizon == "5"]
    iterations, decisions = sum(sum(r.iterations) for r in played), sum(len(r.iterations) for r in played)
    assert adaptive["iterations per decision"]["value"] == pytest.approx(iterations / decisions)
    assert adaptive["decisions per episode"]["value"] == pytest.approx(decisions / 20)
    base = sum(sum(record.iterations) for record in load_runs([run])[0].records)
    saved = adaptive["iterations per episode, % against depth 12, 5 actions"]["value"]
    assert saved == pytest.approx(iterations / base - 1)
    assert "No strategy is shown to be as good" in found["sentences"][0]  # 20 episodes do not show it
    assert "up to 34 %" in page
    assert found["missing"][0].startswith(
        "an adaptive rule with the horizons binary_released, dynamic_paper, linear_decay"
    )
    assert "--stop action_l2 --delta 0.001 --horizon binary_released,dynamic_paper,linear_decay" in found["missing"][0]
    with pytest.raises(ConfigError, match=r"no episode at depth 12 with a fixed horizon.*--depth 12"):
        results("strategies", more)


def test_strategies_are_compared_with_the_start_from_noise_whatever_was_played_first(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(FIXED, ADAPTIVE), n_tasks=2, warm_starts=("half", "noise"))
    found, _ = results("strategies", run)
    assert "against depth 12, points" in found["tables"][0]["rows"][0]


def test_the_best_strategy_is_among_those_that_are_not_worse(results, tmp_path):
    stops = (FIXED, StopRule("cosine", max_depth=4), StopRule("latent", max_depth=3))
    run = write_run(tmp_path / "run", stops=stops, n_tasks=10, episodes=8)
    solve(run, lambda r: not r["rule"].startswith("latent") or r["init_state"] < 4)
    found, _ = results("strategies", run)
    assert found["sentences"][0].startswith("Of the strategies shown not to be worse by 5 points, cosine > 0.999 takes")


def test_iterations_of_tasks_and_phases_go_with_difficulty(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(1), FIXED, ADAPTIVE), n_tasks=9, episodes=10)
    solve(run, lambda r: r["init_state"] > r["task_id"] or r["depth"] != 1)
    found, page = results("iterations", run)
    tasks, together = found["tables"]
    rows = tasks["rows"]
    assert len(rows) == 10
    played = [record for record in load_runs([run])[0].records if record.depth is None]
    means = {
        k: sum(sum(r.iterations) for r in played if r.task_id == k)
        / sum(len(r.iterations) for r in played if r.task_id == k)
        for k in range(9)
    }
    order = sorted(means, key=means.get, reverse=True)
    assert [int(row[""].split(":")[0].split()[1]) for row in rows[:-1]] == order
    assert rows[0]["iterations per decision"]["value"] == pytest.approx(means[order[0]])
    assert rows[0]["solved under depth 1"]["successes"] == 9 - order[0]
    # the made-up policy thinks longer in later tasks, which here fail more at depth 1, and in the middle of an episode
    assert together["rows"][0]["rank correlation"]["value"] > 0.8
    assert together["rows"][0]["rank correlation"]["p_value"] < 0.01
    assert rows[-1]["middle"] > rows[-1]["beginning"] + 1
    assert "against the beginning of the same episode: middle +" in page
    assert together["rows"][-1]["rank correlation"] is None  # nothing fails under the rule itself
    assert found["missing"] == []
    few, _ = results("iterations", write_run(tmp_path / "few", stops=(ADAPTIVE,), n_tasks=3, episodes=2))
    assert all(row["iterations per decision"]["low"] is None for row in few["tables"][0]["rows"][:-1])
    assert few["tables"][0]["rows"][-1]["iterations per decision"]["low"] is not None
    with pytest.raises(ConfigError, match=r"no episode under an adaptive rule; play .*--stop action_mse"):
        results("iterations", write_run(tmp_path / "fixed", stops=(FIXED,), n_tasks=1))


def test_ablations_stand_against_the_first(results, tmp_path):
    usual = write_run(tmp_path / "a", stops=(FIXED, ADAPTIVE), n_tasks=2)
    other = write_run(tmp_path / "b", stops=(FIXED,), n_tasks=2, policy_digest="b", policy="checkpoints/without")
    solve(usual, lambda r: True)
    solve(other, lambda r: r["task_id"] == 0)
    found, page = results("ablations", f"usual={usual}", f"without injection={other}")
    rows = found["tables"][0]["rows"]
    assert [(row[""], row["rule"]) for row in rows] == [
        ("usual", "depth 12"),
        ("without injection", "depth 12"),
        ("usual", "action_l2 < 0.001"),
    ]
    assert rows[1]["against usual, points"]["losses"] == 5
    assert rows[1]["libero_object"]["successes"] == 5
    assert found["missing"] == ["without injection under action_l2 < 0.001, from the starts of usual"]
    assert "without b, 10 episodes" in page
    third = write_run(tmp_path / "c", stops=(FIXED,), n_tasks=2, policy_digest="c", policy="checkpoints/third")
    solve(third, lambda r: r["task_id"] == 0 and r["init_state"] == 0)
    found, _ = results("ablations", f"usual={usual}", f"without={other}", f"third={third}")
    assert found["sentences"][0].endswith("(Holm): without, depth 12, p = 0.062; third, depth 12, p = 0.0078.")
    with pytest.raises(ConfigError, match="give NAME=RUN for every one"):
        results("ablations", usual, f"other={other}")


def test_variants_of_libero_pro(results, tmp_path):
    suites = ("libero_object", "libero_object_swap", "libero_object_lan")
    run = write_run(tmp_path / "run", stops=(FIXED,), suites=suites, n_tasks=2)
    solve(run, lambda r: not r["suite"].endswith("swap"))
    tuned = write_run(tmp_path / "tuned", stops=(FIXED,), suites=("libero_object_swap",), n_tasks=2, policy_digest="t")
    solve(tuned, lambda r: True)
    found, page = results("pro", run, f"wide placements={tuned}")
    usual, wide = found["tables"][0]["rows"]
    assert usual[""] == "libero_object, depth 12"
    assert [usual[name] and usual[name]["successes"] for name in ("unchanged", "lan", "object", "swap", "task")] == [
        10,
        10,
        None,
        0,
        None,
    ]
    assert (wide[""], wide["swap"]["successes"]) == ("wide placements, libero_object, depth 12", 10)
    (against,) = found["comparisons"]
    assert against["name"] == "wide placements, libero_object_swap, depth 12,"
    assert [against["comparison"][name] for name in ("n", "wins", "losses")] == [10, 10, 0]
    assert found["missing"][0].startswith("libero_object_object, libero_object_task under depth 12: `rdvla eval")
    assert "--depth 12 --output" in found["missing"][0]
    assert "collapse to 0 %" in page
    assert "also differ" not in page


def test_what_differs_beside_the_rule_is_said_once(results, tmp_path):
    def drawn(name, *suites):
        run = write_run(tmp_path / name, stops=(FIXED,), suites=suites, n_tasks=2, policy_digest=name)
        return edit(run, lambda r: r | {"versions": r["versions"] | {"renderer": name}})

    suites = ("libero_object_swap", "libero_object_lan")
    usual, two, one = drawn("a", *suites), drawn("b", *suites), drawn("c", suites[0])
    assert "All of these also differ: renderer: b against a.\n" in results("pro", usual, f"two={two}")[1]
    page = results("pro", usual, f"one={one}")[1]
    assert "one, libero_object_swap, depth 12, against depth 12 also differs: renderer: c against a.\n" in page
    page = results("pro", usual, f"one={one}", f"two={two}")[1]
    assert page.count("also differs: renderer: c against a.") == 1
    assert page.count("also differs: renderer: b against a.") == 2


def test_variants_that_were_not_played(results, tmp_path):
    with pytest.raises(ConfigError, match=r"no episode of a LIBERO-PRO variant; play .*libero_object_lan"):
        results("pro", write_run(tmp_path / "plain", stops=(FIXED,), n_tasks=1))


def test_the_report_page_has_the_tables_that_the_runs_hold_whole(tmp_path):
    run = write_run(
        tmp_path / "run", stops=(StopRule.fixed(1), FIXED, ADAPTIVE), suites=tuple(SUITES), n_tasks=10, episodes=1
    )
    page = render(load_runs([run]))
    assert [name for name in TABLES if f'id="{name}-table-1"' in page] == ["suites", "iterations"]
    assert "<th>Spatial</th>" in page
    assert "the paper, adaptive" in page
