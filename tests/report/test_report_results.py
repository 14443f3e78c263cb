"""`rdvla results`: the published tables from runs, what they say, what they miss, and the page they stand on."""

import json
import shutil
from dataclasses import replace

import pytest

from rdvla.cli.options import StopOptions
from rdvla.errors import ConfigError, StorageError
from rdvla.eval.intervals import wilson
from rdvla.eval.records import EPISODES_FILE
from rdvla.report.load import group_runs, load_runs
from rdvla.report.results.build import TITLE, put
from rdvla.report.results.given import options
from rdvla.report.results.suites import PAPER, SUITES
from rdvla.stops import StopRule
from report_fakes import ADAPTIVE, edit, solve, write_chains, write_run

FIXED = StopRule.fixed(12)
STEPS = tuple(map(StopRule.fixed, (1, 4, 8, 12, 32)))


def test_four_suites_beside_the_paper(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(FIXED, ADAPTIVE), suites=tuple(SUITES), n_tasks=10, episodes=2)
    solve(run, lambda r: r["task_id"] > 0 if r["depth"] else r["task_id"] > 1 or r["suite"] == "libero_goal")
    found, page = results("suites", run)
    fixed, adaptive, difference, *paper = found["tables"][0]["rows"]
    assert (fixed[""], fixed["Spatial"]["successes"], fixed["Spatial"]["n"]) == ("depth 12", 18, 20)
    assert fixed["Spatial"]["wilson_95"] == [wilson(18, 20).low, wilson(18, 20).high]
    assert fixed["average"]["value"] == pytest.approx(0.9)
    assert fixed["iterations per decision"] == {"value": 12, "low": 12, "high": 12}
    assert adaptive["iterations per decision"]["low"] < adaptive["iterations per decision"]["value"]
    assert adaptive["average"]["value"] == pytest.approx((0.8 * 3 + 1) / 4)
    assert (difference["Long"]["wins"], difference["Long"]["losses"], difference["Long"]["n"]) == (0, 2, 20)
    assert (difference["average"]["wins"], difference["average"]["losses"]) == (2, 6)
    counts = [n for record in load_runs([run])[0].records if record.depth is None for n in record.iterations]
    assert difference["iterations per decision"]["value"] == pytest.approx(sum(counts) / len(counts) / 12 - 1)
    assert [row["Object"] for row in paper] == [shares[1] for shares in PAPER.values()] == [0.99, 0.988]
    assert "| depth 12 | 90 % (70-97), 18/20 |" in page
    assert "| the paper, depth 12 | 92.0 % | 99.0 % | 96.0 % | 84.8 % | 93.0 % | - |" in page
    assert "80 episodes of 40 tasks: 2 won by the first alone, 6 by the second alone (exact McNemar" in page
    assert "Missing" not in page
    assert "tiny 0123456789abcdef, 160 episodes, initial states 0-1" in page
    assert found["source"]["policies"][0]["runs"] == ["rdvla eval --suite " + ",".join(SUITES)]


def test_what_a_table_of_suites_lacks_is_named_with_its_command(results, tmp_path):
    run = write_run(
        tmp_path / "run", stops=(FIXED,), suites=("libero_object", "libero_goal"), n_tasks=8, horizons=("4",)
    )
    found, _ = results("suites", run)
    play = "rdvla eval --checkpoint checkpoints/tiny --suite libero_spatial,libero_10 --init-states 0-4 --horizon 4"
    assert found["missing"][:2] == ["libero_object tasks 8, 9 under depth 12", "libero_goal tasks 8, 9 under depth 12"]
    assert found["missing"][2] == f"libero_spatial, libero_10 under depth 12: `{play} --depth 12 --output runs/NEW`"
    assert found["missing"][3].endswith(
        f"--suite {','.join(SUITES)} --init-states 0-4 --horizon 4 --stop action_mse --output runs/NEW`"
    )
    assert found["tables"][0]["rows"][0]["average"] is None
    shallow = write_run(tmp_path / "shallow", stops=(StopRule.fixed(4),), suites=("libero_goal",), n_tasks=2)
    with pytest.raises(
        ConfigError, match=r"no episode of .* at depth 12 or under an adaptive rule; play `rdvla eval .*--depth 12"
    ):
        results("suites", shallow)


def test_what_is_missing_is_played_from_the_starts_of_all_runs(results, tmp_path):
    few = write_run(tmp_path / "few", stops=(FIXED,), suites=("libero_goal",), n_tasks=10, episodes=2)
    more = write_run(tmp_path / "more", stops=(FIXED,), suites=("libero_object",), n_tasks=10, episodes=4)
    found, _ = results("suites", few, more)
    assert "--suite libero_spatial,libero_10 --init-states 0-3 --depth 12" in found["missing"][0]


def test_a_command_plays_the_same_tasks_and_the_same_rule(results, tmp_path):
    settings = {"suites": ("libero_goal",), "n_tasks": 4, "task_ids": (1, 3)}
    found, _ = results("suites", write_run(tmp_path / "run", stops=(ADAPTIVE,), **settings))
    assert "libero_goal tasks 0, 2, 4, 5, 6, 7, 8, 9 under action_l2 < 0.001" in found["missing"]
    assert any("--stop action_l2 --delta 0.001" in each for each in found["missing"])
    found, _ = results("depth", ladder(tmp_path / "ladder", **settings))
    assert "--suite libero_goal --init-states 0-4 --task-ids 1,3 --depth 2,3,6,16,24" in found["missing"][0]


@pytest.mark.parametrize(
    "stop",
    [
        StopRule.fixed(4),
        StopRule("latent", 0.03, max_depth=16),
        StopRule("action_mse", 2e-3, min_depth=3, check_every=2, defer=0.25),
    ],
    ids=str,
)
def test_a_rule_is_asked_for_as_it_was_played(tmp_path, stop):
    (rule,) = group_runs(load_runs([write_run(tmp_path / "run", stops=(stop,))]))[0].rules
    words = options(replace(rule, ask=replace(rule.ask, budget_ms=50.0, warm_start="half")))
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    asked = dict(zip(names, words[1::2], strict=True))
    assert (asked.pop("budget_ms"), asked.pop("start")) == ("50", "half")
    numbers = {name: int(asked.pop(name)) for name in ("min_depth", "max_depth", "check_every") if name in asked}
    assert StopOptions(**asked, **numbers).rule() == stop


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "ws://robot:8000"}, "--policy ws://robot:8000 --suite"),
        ({"policy": "expert (noise)"}, "--policy expert --noise --suite"),
        (
            {"policy": "runs/p (precision=int8, compile=True)"},
            "--checkpoint runs/p --precision int8 --compile --suite",
        ),
        ({"seed": 8, "delays": (2,)}, "--delay 2 --seed 8 --depth"),
        ({"n_tasks": 6, "task_ids": (0, 1, 2, 5)}, "--task-ids 0-2,5 --depth"),
        ({"strategies": ("background:4",)}, "--strategy background:4 --depth"),
        ({"protocol": "released"}, "--strategy synchronous --protocol released --depth"),
        ({"horizons": ("binary_paper",)}, "--horizon binary_paper --depth"),
    ],
)
def test_a_command_asks_the_same_policy_in_the_same_way(results, tmp_path, settings, words):
    found, _ = results("depth", ladder(tmp_path / "run", **{"n_tasks": 1, "episodes": 1} | settings))
    assert words in found["missing"][0]


def test_every_rule_lacks_the_depths_of_its_own_horizon(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(ADAPTIVE,), horizons=("4", "binary_paper"), n_tasks=1, episodes=2)
    found, _ = results("iterations", run)
    wanted = [f"--horizon {horizon} --depth 1,12" for horizon in ("4", "binary_paper")]
    assert [words in each for words, each in zip(wanted, found["missing"], strict=True)] == [True, True]


def test_depths_of_other_starts_do_not_take_the_table_away(results, tmp_path):
    shallow = write_run(tmp_path / "shallow", stops=(StopRule.fixed(4), StopRule.fixed(8)), n_tasks=1, episodes=2)
    deep = write_run(tmp_path / "deep", stops=(FIXED,), n_tasks=1, episodes=4)
    edit(deep, lambda record: record | {"init_state": record["init_state"] + 2})
    found, _ = results("depth", shallow, deep)
    assert any("Depths 8 and 12 were not played from the same starts." in each for each in found["sentences"])


def test_an_unfinished_run_says_so(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(FIXED,), suites=("libero_goal",), n_tasks=10, episodes=2)
    content = json.loads((run / "run.json").read_text()) | {"tasks": [{}] * 10}
    (run / "run.json").write_text(json.dumps(content))
    assert not any("command goes on" in each for each in results("suites", run)[0]["missing"])
    log = run / EPISODES_FILE
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:13]))
    missing = results("suites", run)[0]["missing"]
    assert missing[-1] == "'run' has 13 of 20 episodes; its command goes on: `rdvla eval --suite libero_goal`"
    command = ["rdvla", "eval", "--checkpoint", "/home/me/policies/usual", "--output", "/data/runs/run"]
    (run / "run.json").write_text(json.dumps(content | {"command": command}))
    assert results("suites", run)[0]["missing"][-1].endswith(f"`{' '.join(command)}`"), "it has to work when pasted"


def test_episodes_that_could_not_be_played_are_told(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(FIXED,), suites=("libero_goal",), n_tasks=10, episodes=2, errors=3)
    found, _ = results("suites", run)
    assert found["missing"][-1].startswith("'run' has 17 of 20 episodes; its command goes on")
    assert found["tables"][0]["rows"][0]["Goal"]["n"] == 17


def test_other_suites_are_no_part_of_the_four(results, tmp_path):
    stops = (FIXED, ADAPTIVE)
    four = write_run(tmp_path / "four", stops=stops, suites=tuple(SUITES), n_tasks=10, episodes=2)
    other = write_run(tmp_path / "other", stops=stops, suites=("libero_object_swap",), n_tasks=10, episodes=2)
    solve(other, lambda r: r["stop"]["name"] != "fixed")
    alone, _ = results("suites", four)
    both, _ = results("suites", four, other)
    assert both["tables"] == alone["tables"]
    assert both["comparisons"] == alone["comparisons"]
    part, _ = results("suites", write_run(tmp_path / "part", stops=stops, suites=("libero_object",), n_tasks=10))
    assert part["tables"][0]["rows"][2]["average"] is None


def test_a_rule_is_compared_with_the_depth_that_begins_as_it_does(results, tmp_path):
    starts = ("half", "noise")
    run = write_run(
        tmp_path / "run", stops=(FIXED, ADAPTIVE), suites=("libero_goal",), n_tasks=10, episodes=2, warm_starts=starts
    )
    found, _ = results("suites", run)
    pairs = {(each["name"], each["baseline"]) for each in found["comparisons"]}
    assert pairs >= {
        ("action_l2 < 0.001", "depth 12"),
        ("action_l2 < 0.001, half start", "depth 12, half start"),
    }


def test_what_is_mixed_is_named(results, tmp_path):
    settings = {"stops": (FIXED,), "suites": ("libero_goal",), "n_tasks": 10, "episodes": 2}
    runs = [write_run(tmp_path / str(seed), seed=seed, **settings) for seed in (7, 8)]
    edit(runs[1], lambda record: record | {"versions": record["versions"] | {"mujoco": "3.3.9"}})
    found, page = results("suites", *runs)
    assert found["source"]["policies"][0]["mixed"] == "seeds 7, 8; mujoco 3.3.2, 3.3.9"
    assert "(mixed: seeds 7, 8; mujoco 3.3.2, 3.3.9)" in page
    assert "mixed" not in results("suites", runs[0])[1]


def test_an_error_replaces_no_episode(results, tmp_path):
    settings = {"stops": (FIXED,), "suites": ("libero_goal",), "n_tasks": 10, "episodes": 2}
    played = write_run(tmp_path / "played", **settings)
    broken = write_run(tmp_path / "broken", **settings, errors=20)
    whole, _ = results("suites", played)
    for order in ((played, broken), (broken, played)):
        assert results("suites", *order)[0]["tables"] == whole["tables"]


def test_rules_that_were_executed_differently_are_not_paired(results, tmp_path):
    fixed = write_run(tmp_path / "fixed", stops=(FIXED,), suites=("libero_goal",), horizons=("4",))
    adaptive = write_run(tmp_path / "adaptive", stops=(ADAPTIVE,), suites=("libero_goal",), horizons=("5",))
    found, _ = results("suites", fixed, adaptive)
    assert found["comparisons"] == []
    words = "depth 12 from the same starts, executed as 5, to compare action_l2 < 0.001, 5 actions with"
    assert words in found["missing"]


def test_the_same_checkpoint_elsewhere_is_the_same_policy_and_another_is_refused(results, tmp_path):
    here = write_run(tmp_path / "a", stops=(FIXED,), suites=("libero_goal",), n_tasks=2)
    there = write_run(tmp_path / "b", stops=(ADAPTIVE,), suites=("libero_goal",), n_tasks=2, policy="/elsewhere/tiny")
    found, _ = results("suites", here, there)
    assert [row[""] for row in found["tables"][0]["rows"]][:2] == ["depth 12", "action_l2 < 0.001"]
    assert len(found["comparisons"]) == 1
    other = write_run(tmp_path / "c", stops=(FIXED,), suites=("libero_goal",), n_tasks=2, policy_digest="other")
    with pytest.raises(ConfigError, match=r"of several policies \(tiny.* in a; tiny.* in c\)"):
        results("suites", here, other)
    with pytest.raises(ConfigError, match="without names"):
        results("suites", f"mine={here}")


def ladder(folder, **settings):
    """Write a run of five depths: nothing is solved at depth 1, everything deeper."""
    return solve(write_run(folder, stops=STEPS, **settings), lambda record: record["depth"] > 1)


def test_a_curve_of_depths_that_start_otherwise_is_refused(results, tmp_path):
    ladder(tmp_path / "noise", n_tasks=2)
    other = write_run(tmp_path / "half", stops=(StopRule.fixed(24),), n_tasks=2, warm_starts=("half",))
    with pytest.raises(ConfigError, match=r"played in several ways.*depth 24, half start"):
        results("depth", tmp_path / "noise", other)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return a run of ten tasks, ten starts each, at five depths."""
    return ladder(tmp_path_factory.mktemp("many") / "run", n_tasks=10, episodes=10)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (
            {},
            (
                "0 % at depth 1 holds",
                "above 90 % at depth 4 holds",
                "plateau from 8 to 12 holds: +0.0 points, within chance, a change of 5 points is excluded",
            ),
        ),
        ({1: 0.1}, ("0 % at depth 1 does not hold: 10\u00a0% (10 of 100",)),
        ({4: 0.9}, ("above 90 % at depth 4 is undecided",)),
        ({4: 0.5}, ("above 90 % at depth 4 does not hold",)),
        (
            {8: 0.8},
            ("plateau from 8 to 12 does not hold: +20.0 points, beyond chance", "plateau from 12 to 32 holds"),
        ),
    ],
)
def test_what_holds_of_the_claim_about_depth(results, many, tmp_path, shares, said):
    shares = {1: 0, 4: 1, 8: 1, 12: 1, 32: 1} | shares
    run = shutil.copytree(many, tmp_path / "run")
    solve(run, lambda r: (r["init_state"] + r["task_id"]) % 10 < 10 * shares[r["depth"]])
    found, _ = results("depth", run)
    sentence = found["sentences"][0]
    assert sentence.startswith("libero_object, the paper's claim: ")
    for words in said:
        assert words in sentence
    assert found["missing"][0].startswith("depth 2, 3, 6, 16, 24: `rdvla eval")


def test_a_plateau_needs_enough_episodes(results, tmp_path):
    found, _ = results("depth", ladder(tmp_path / "run", n_tasks=2, episodes=3))
    assert (
        "plateau from 8 to 12 is undecided: +0.0 points, within chance, a change of 5 points is not excluded"
        in found["sentences"][0]
    )


def test_depth_by_suite_and_of_the_hardest_tasks(results, tmp_path):
    run = ladder(tmp_path / "run", suites=("libero_object", "libero_10"), n_tasks=2, episodes=4)
    solve(run, lambda r: r["success"] and r["task_id"] == 0)
    found, _ = results("depth", run)
    assert "libero_10 1 (0 of 20); libero_object 1 (0 of 20); libero_10 0 (16 of 20)" in found["sentences"][1]
    hard = ladder(tmp_path / "hard", suites=("libero_10",), n_tasks=1, episodes=10)
    solve(hard, lambda r: r["depth"] > 4 or r["init_state"] < 3)
    found, page = results("depth", run, f"hardest={hard}")
    rows = {row["depth"]: row for row in found["tables"][0]["rows"]}
    assert list(rows) == [1, 4, 8, 12, 32]
    names = ("libero_object", "libero_10", "all episodes", "hardest")
    assert list(rows[4]) == ["depth", *names]
    assert [rows[4][name]["successes"] for name in names] == [4, 4, 8, 3]
    assert len(found["sentences"]) == 2
    assert len(found["comparisons"]) == 6
    assert "- hardest, depth 8 against depth 4: 10 episodes of 1 task: 7 won by the first alone" in page
    for name in ("libero_10", "all episodes"):
        with pytest.raises(ConfigError, match=f"a column is called '{name}' already"):
            results("depth", run, f"{name}={hard}")


def test_depths_that_cannot_be_one_curve_are_refused(results, tmp_path):
    with pytest.raises(ConfigError, match=r"not played at several depths; play `.*--depth 1,2,3,4,6,8,12,16,24,32"):
        results("depth", write_run(tmp_path / "one", stops=(FIXED, ADAPTIVE)))
    with pytest.raises(ConfigError, match="played in several ways"):
        results("depth", ladder(tmp_path / "two", n_tasks=1, episodes=1, horizons=("4", "5")))


def thinking_of(folder):
    counts = [count for record in load_runs([folder])[0].records for count in record.iterations]
    return sum(counts) / len(counts)


def test_chains_beside_the_paper_and_iterations_by_place(results, tmp_path):
    fixed = write_chains(tmp_path / "fixed", [5, 0, 2, 1], stops=(FIXED,))
    adaptive = write_chains(tmp_path / "adaptive", [5, 1, 2, 2], stops=(ADAPTIVE,), iterations=(4, 6, 6, 6, 9))
    found, page = results("chains", fixed, adaptive)
    score, places = found["tables"]
    assert [row["1 in a row"]["successes"] for row in score["rows"][:2]] == [3, 4]
    difference, paper = score["rows"][2:]
    assert [difference[f"{count} in a row"]["wins"] for count in range(1, 6)] == [1, 1, 0, 0, 0]
    assert [difference[f"{count} in a row"]["losses"] for count in range(1, 6)] == [0] * 5
    assert difference["1 in a row"]["n"] == 4
    assert difference["average"]["value"] == 0.5
    assert difference["iterations per decision"]["value"] == pytest.approx(
        thinking_of(adaptive) / thinking_of(fixed) - 1
    )
    assert paper["1 in a row"] == 0.914
    assert [row["average"]["value"] for row in score["rows"][:2]] == [2.0, 2.5]
    thinking = score["rows"][1]["iterations per decision"]
    assert 4 < thinking["low"] < thinking["value"] < thinking["high"] < 9
    assert paper["average"] == 3.39
    assert [row["solved when begun"]["n"] for row in places["rows"]] == [4, 4, 3, 1, 1]
    assert [row["iterations per decision"]["value"] for row in places["rows"]] == [4, 6, 6, 6, 9]
    later = [row["solved tasks against the first of the chain"] for row in places["rows"]]
    assert later[0] is None
    assert [row["value"] for row in later[1:]] == [2, 2, 2, 5]
    assert found["sentences"][0].startswith(
        "action_l2 < 0.001, calvin_d, official against depth 12, 4 common chains: +0.50"
    )
    assert "later solved tasks against the first of the same chain, 3 chains: +2.25 (+2.00 to +2.75) iterations" in page
    assert "and how often it fails once begun, 5 goals: rank correlation +" in page
    assert "within what chance allows (sign test p = 0.5)." in found["sentences"][0]
    assert "iterations per decision, no measurable difference (sign test p = 0.25)." in page
    with pytest.raises(ConfigError, match="no run has chains"):
        results("chains", write_run(tmp_path / "run", stops=(FIXED,), n_tasks=1))


def test_chains_that_agree_show_something_when_they_are_enough(results, tmp_path):
    """The interval of resampled chains has no width where all of them agree."""

    def sentences(name, chains):
        fixed = write_chains(tmp_path / name, [1] * chains, stops=(FIXED,))
        adaptive = write_chains(tmp_path / f"{name}a", [2] * chains, stops=(ADAPTIVE,), iterations=(4, 6, 6, 6, 9))
        return results("chains", fixed, adaptive)[0]["sentences"]

    score, later, goals = sentences("one", 1)
    assert "1 common chain: +1.00 (+1.00 to +1.00) tasks in a row, within what chance allows (sign test p = 1)" in score
    assert "1 chain: +2.00 (+2.00 to +2.00) iterations per decision, no measurable difference (sign test" in later
    assert goals.endswith("2 goals: no rank correlation, too few to say.")
    score, later, _ = sentences("six", 6)
    assert "6 common chains: +1.00 (+1.00 to +1.00) tasks in a row, beyond chance (sign test p = 0.031)" in score
    assert "6 chains: +2.00 (+2.00 to +2.00) iterations per decision, more (sign test p = 0.031)" in later


def test_chains_of_an_expert_ask_for_no_thinking(results, tmp_path):
    run = write_chains(tmp_path / "run", [2, 1])
    edit(run, lambda record: record | {"iterations": [0] * len(record["iterations"])})
    found, _ = results("chains", run)
    assert found["tables"][0]["rows"][0]["iterations per decision"] is None
    assert found["missing"] == []


def test_overlapping_decisions_have_no_place_in_the_chain(results, tmp_path):
    run = write_chains(tmp_path / "run", [2, 1], stops=(ADAPTIVE,))
    edit(run, lambda record: record | {"executed": [n + 1 for n in record["executed"]]})
    found, _ = results("chains", run)
    assert len(found["tables"]) == 1
    assert found["missing"][0].startswith("an adaptive rule, executed synchronously: `rdvla eval")


def test_the_page_keeps_what_others_wrote_and_the_order_of_tables(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(4), FIXED), n_tasks=1)
    chains = write_chains(tmp_path / "chains", [1])
    results("chains", chains)
    _, page = results("depth", run)
    assert page.startswith(TITLE)
    assert page.index("## Success against depth") < page.index("## CALVIN")
    path = tmp_path / "docs" / "results.md"
    path.write_text(page.replace("## CALVIN", "## CHANGED").replace("# Results", "# My results"))
    _, page = results("chains", chains)
    assert page.startswith("# My results")
    assert "CHANGED" not in page
    assert page.count("## CALVIN") == page.count("## Success against depth") == 1
    assert results("chains", chains)[1] == page
    for damaged in (page.replace("<!-- end of rdvla results depth -->", ""), page + "<!-- rdvla results depth -->"):
        with pytest.raises(ConfigError, match="section 'depth' is damaged"):
            put(damaged, "depth", "")
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match="results"):
        results("depth", run)


def test_an_unknown_table(results, tmp_path):
    run = write_run(tmp_path / "run", stops=(FIXED,), n_tasks=1)
    with pytest.raises(ConfigError, match=r"unknown table 'suits' .*Did you mean 'suites'"):
        results("suits", run)
