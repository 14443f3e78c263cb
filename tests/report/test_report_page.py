import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from rdvla.errors import ConfigError, RecordError, StorageError
from rdvla.eval.paired import mcnemar
from rdvla.eval.records import EPISODES_FILE
from rdvla.report.figures import decay, success_against_depth
from rdvla.report.findings import about_alarm, about_depth, about_latency, best_adaptive, best_fixed, headline, pair
from rdvla.report.load import group_runs, load_named, load_runs
from rdvla.report.page import render, write_report
from rdvla.report.svg import Scale, decades, nice_ticks, spread
from rdvla.report.tradeoff import compared_in_time, success_against_time
from rdvla.stops import StopRule
from report_fakes import ADAPTIVE, DEPTHS, edit, solve, write_run

SECTIONS = [
    "depth",
    "rules-1",
    "iterations-1",
    "convergence-1",
    "tradeoff-1",
    "latency-1",
    "tasks-1",
    "films",
    "errors",
    "provenance",
]
VOID = {"meta", "br", "img"}


class Checker(HTMLParser):
    """Fails on unbalanced tags; collects ids, addresses and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags, self.words = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


def check(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(address.startswith("data:") for address in checker.addresses)
    without_films = re.sub(r"base64,[^\"]*", "", page).lower()
    assert not re.search(r"https?:|url\(|@import|\bnan\b|\binf\b|undefined|none%", without_films)
    return checker


def test_everything_at_once(tmp_path):
    run = write_run(tmp_path / "run", stops=(*DEPTHS, ADAPTIVE), errors=2, videos=1, n_tasks=2, episodes=3)
    output = tmp_path / "deep" / "report.html"
    write_report(load_runs([run]), output)
    checker = check(output.read_text())
    assert checker.ids == SECTIONS
    assert checker.tags.count("video") == len(list((run / "videos").iterdir())) > 10
    for words in ("depth 32", "action_l2 < 0.001", "signal 11", "McNemar", "mujoco", "3.3.2", "0123456789abcdef"):
        assert words in checker.text
    assert list(output.parent.iterdir()) == [output]


def test_numbers_on_the_page_are_the_data(tmp_path):
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(1), StopRule.fixed(8)), n_tasks=2, episodes=4)
    lines = [json.loads(line) for line in (run / EPISODES_FILE).read_text().splitlines()]
    text = check(render(load_runs([run]))).text
    for depth in (1, 8):
        wins = [line["success"] for line in lines if line["depth"] == depth]
        share = f"{sum(wins) / 8 * 100:.1f}".removesuffix(".0")
        assert f"{share} % ({sum(wins)} of 8, 95 % interval" in text
    assert f"{len(lines)} episodes of 2 tasks (libero_object), initial states 0-3" in text


@pytest.mark.parametrize(
    ("stops", "present", "absent"),
    [
        ((None,), {"rules-1", "tasks-1", "latency-1"}, {"depth", "iterations-1", "convergence-1", "films", "errors"}),
        ((StopRule.fixed(3),), {"depth", "rules-1"}, {"iterations-1", "convergence-1", "tradeoff-1"}),
        ((ADAPTIVE,), {"depth", "iterations-1", "convergence-1"}, {"films"}),
        ((StopRule("cosine", max_depth=16), StopRule("latent", max_depth=16), ADAPTIVE), {"convergence-1"}, set()),
        ((replace(ADAPTIVE, defer=0.1), StopRule.fixed(3)), {"iterations-1", "tradeoff-1"}, {"convergence-1"}),
    ],
)
def test_missing_pieces(tmp_path, stops, present, absent):
    checker = check(render(load_runs([write_run(tmp_path / "run", stops=stops, n_tasks=1, episodes=1)])))
    assert present <= set(checker.ids)
    assert not absent & set(checker.ids)


def test_runs_by_name_get_the_tables_of_names(tmp_path):
    usual = write_run(tmp_path / "a", stops=(StopRule.fixed(12),), n_tasks=2)
    other = write_run(tmp_path / "b", stops=(StopRule.fixed(12),), n_tasks=2, policy_digest="b")
    page = render(load_named([f"usual={usual}", f"without injection={other}"]))
    checker = check(page)
    assert [name for name in checker.ids if name.startswith("ablations")] == ["ablations-table"]
    assert "without injection, depth 12, against depth 12: 10 episodes of 2 tasks" in checker.text
    assert re.findall(r'<h2 class="policy">(.*?)</h2>', page) == ["usual", "without injection"]
    assert "ablations-table" not in check(render(load_runs([usual, other]))).ids


def test_names_hide_no_table_of_a_policy(tmp_path):
    suites = ("libero_goal", "libero_10")
    ladder = tuple(StopRule.fixed(depth) for depth in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))
    runs = [write_run(tmp_path / name, stops=ladder, suites=suites, n_tasks=1, policy_digest=name) for name in "ab"]
    checker = check(render(load_named([f"x={runs[0]}", f"y={runs[1]}"])))
    assert {"depth-table", "depth-table-1", "depth-table-2"} <= set(checker.ids)
    assert "x (a)" in checker.text


def test_a_name_that_a_column_has_is_said(tmp_path):
    run = write_run(tmp_path / "run", stops=DEPTHS, n_tasks=2)
    hard = write_run(tmp_path / "hard", stops=DEPTHS, n_tasks=1, seed=7)
    with pytest.raises(ConfigError, match="a column is called 'libero_object' already"):
        render(load_named([str(run), f"libero_object={hard}"]))


def test_a_table_with_a_column_by_name_stands_once(tmp_path):
    run = write_run(tmp_path / "run", stops=DEPTHS, n_tasks=2)
    hard = write_run(tmp_path / "hard", stops=DEPTHS, n_tasks=1, seed=7)
    checker = check(render(load_named([str(run), f"hardest={hard}"])))
    assert [name for name in checker.ids if name.startswith("depth-table")] == ["depth-table"]
    assert "hardest" in checker.text


def test_runs_without_a_name_beside_names_are_of_one_policy(tmp_path):
    runs = [write_run(tmp_path / name, stops=DEPTHS[:1], n_tasks=1, policy_digest=name) for name in "abc"]
    with pytest.raises(ConfigError, match=r"the runs without a name are of several policies .*others as NAME=RUN"):
        render(load_named([str(runs[0]), str(runs[1]), f"third={runs[2]}"]))


def test_only_errors(tmp_path):
    checker = check(render(load_runs([write_run(tmp_path / "run", stops=DEPTHS[:1], n_tasks=1, episodes=2, errors=2)])))
    assert "errors" in checker.ids
    assert "no episode could be played" in checker.text


def test_a_suite_of_errors_beside_one_that_was_played(tmp_path):
    run = write_run(tmp_path / "run", stops=DEPTHS, n_tasks=2, episodes=2, suites=("toy", "libero_object"), errors=0)
    edit(run, lambda record: as_error(record) if record["suite"] == "toy" else record)
    check(render(load_runs([run])))


def as_error(record):
    identity = ("suite", "task", "task_id", "instruction", "init_state", "seed", "episode_seed", "rule", "stop")
    kept = {name: record[name] for name in (*identity, "horizon", "depth") if name in record}
    return kept | {"kind": "error", "error": "it broke", "attempts": 3, "versions": {}}


def test_an_adaptive_rule_of_another_protocol_is_not_compared_with_a_fixed_depth(tmp_path):
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(12), ADAPTIVE), n_tasks=2, episodes=5)
    edit(run, lambda record: record | {"protocol": "released" if record["depth"] is None else "usual"})
    (series,) = group_runs(load_runs([run]))
    assert series.adaptive
    assert (best_adaptive(series), best_fixed(series).depth) == (None, 12)
    assert about_depth(series) == []


def test_what_depth_does_is_not_said_of_depths_that_share_no_episode(tmp_path):
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(1), StopRule.fixed(12)), n_tasks=2, episodes=10)
    solve(run, lambda record: record["depth"] == 12)
    path = run / EPISODES_FILE
    kept = [
        line
        for line in path.read_text().splitlines()
        if json.loads(line)["task_id"] == (json.loads(line)["depth"] == 12)
    ]
    path.write_text("".join(line + "\n" for line in kept))
    (series,) = group_runs(load_runs([run]))
    _, saturation = about_depth(series)
    assert saturation == "Whether a shallower depth does as well as depth 12, common episodes do not say."


def test_the_surest_depth_is_not_called_unbeaten(tmp_path):
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(4), StopRule.fixed(12)), n_tasks=2, episodes=10)
    solve(run, lambda record: (record["depth"], record["init_state"]) != (4, 0))
    path = run / EPISODES_FILE
    lines = path.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["depth"] == 4 or json.loads(line)["init_state"] < 2]
    path.write_text("".join(line + "\n" for line in kept))
    (series,) = group_runs(load_runs([run]))
    assert about_depth(series)[0].startswith("Success is surest at depth 4, the shallowest evaluated: 90")


def test_a_rule_that_executes_otherwise_is_not_in_the_headline(tmp_path):
    depths = write_run(tmp_path / "depths", stops=DEPTHS, n_tasks=2)
    longer = write_run(tmp_path / "longer", stops=(ADAPTIVE,), n_tasks=2, horizons=("8",))
    assert "decides how long to think" not in headline(group_runs(load_runs([depths, longer])))
    alike = write_run(tmp_path / "alike", stops=(ADAPTIVE,), n_tasks=2)
    assert "decides how long to think" in headline(group_runs(load_runs([depths, longer, alike])))


def test_times_of_two_evaluations_make_no_line(tmp_path):
    parts = [
        write_run(tmp_path / name, stops=stops, n_tasks=2) for name, stops in (("a", DEPTHS[:2]), ("b", DEPTHS[2:]))
    ]
    assert about_latency(group_runs(load_runs(parts))[0]) == []
    assert "ms per iteration" in about_latency(group_runs(load_runs(parts[:1]))[0])[0]


def test_depths_with_different_starts_are_compared_on_common_episodes(tmp_path):
    """Depth 4 solves 4 of the 4 that it played, depth 12 those and 15 of the other 16, the adaptive rule 18."""
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(4), StopRule.fixed(12), ADAPTIVE), n_tasks=2, episodes=10)
    few = write_run(tmp_path / "few", stops=(StopRule.fixed(4),), n_tasks=2, episodes=2)
    solve(few, lambda record: True)
    lost = {12: [(1, 9)], None: [(1, 8), (1, 9)]}
    solve(run, lambda record: (record["task_id"], record["init_state"]) not in lost.get(record["depth"], ()))
    path = run / EPISODES_FILE
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if json.loads(line)["depth"] != 4))
    series = group_runs(load_runs([run, few]))
    assert [rule.summary.rate.n for rule in series[0].ladder] == [4, 20]
    assert best_fixed(series[0]).depth == 12
    assert (
        headline(series).replace("\u00a0", " ").startswith("95 % of episodes solved at depth 12, 90 % when the policy")
    )
    depth, _, adaptive = about_depth(series[0])
    assert "surest at depth 12" in depth
    assert "5.0 points against depth 12" in adaptive


def test_an_alarm_of_overlapping_chunks_has_no_lead(tmp_path):
    """What was executed of every decision does not say at which step it was made."""
    run = write_run(tmp_path / "run", stops=(ADAPTIVE,), n_tasks=1, episodes=1)

    def raised(record):
        return {"success": False, "signals": {"alarm": [0.0] + [2.0] * (len(record["iterations"]) - 1)}}

    edit(run, lambda record: record | raised(record))
    (rule,) = group_runs(load_runs([run]))[0].rules
    steps = rule.records[0].steps - 5
    assert f"1 of 1 failures, {steps} steps before the end" in about_alarm(rule)
    edit(run, lambda record: record | {"executed": [20] * len(record["iterations"])})
    (rule,) = group_runs(load_runs([run]))[0].rules
    assert "1 of 1 failures, and in 0 of 0 successes" in about_alarm(rule)


def test_a_task_whose_episodes_drew_their_sentences_is_called_by_its_name(tmp_path):
    def drawn(record):
        words = f"sentence of {record['init_state']}" if record["task_id"] == 1 else record["instruction"]
        return record | {"instruction": words}

    run = edit(write_run(tmp_path / "run", stops=(ADAPTIVE,), n_tasks=2), drawn)
    text = check(render(load_runs([run]))).text
    assert "pick up the alphabet soup and place it in the basket" in text
    assert "libero object 1" in text
    assert "sentence of" not in text


def test_a_figure_of_what_never_moves():
    assert "<svg" in decay([[0.0, 0.0]] * 3, 400, "title", "label")


def test_several_policies_and_split_runs(tmp_path):
    shallow = write_run(tmp_path / "a", stops=DEPTHS[:2], n_tasks=2)
    deep = write_run(tmp_path / "b", stops=(*DEPTHS[1:3], ADAPTIVE), n_tasks=2)
    other = write_run(tmp_path / "c", stops=DEPTHS, n_tasks=2, policy="checkpoints/ablation")
    series = group_runs(load_runs([shallow, deep, other]))
    assert [one.label for one in series] == ["tiny", "ablation"]
    assert [rule.name for rule in series[0].rules] == ["depth 1", "depth 2", "depth 4", "action_l2 < 0.001"]
    assert series[0].rules[1].summary.rate.n == 10  # played in both runs, counted once
    checker = check(render(load_runs([shallow, deep, other])))
    assert "rules-2" in checker.ids
    assert "tradeoff-1" not in checker.ids, "times of two runs are not compared"
    assert "tradeoff-2" in checker.ids
    assert "ablation" in checker.text


def test_success_stands_at_its_typical_time(tmp_path):
    run = write_run(tmp_path / "run", stops=(StopRule.fixed(1), replace(ADAPTIVE, defer=0.1)), n_tasks=2, episodes=4)
    (series,) = group_runs(load_runs([run]))
    rules = compared_in_time(series)
    assert [rule.name for rule in rules] == ["depth 1", "action_l2 < 0.001, Coda deferred to 0.1"]
    drawn = success_against_time(rules, 800)
    for rule in rules:
        times = [ms for record in rule.played for ms in record.latency_ms["decide"]]
        rate = rule.summary.rate
        tip = re.escape(f"({rate.successes} of {rate.n}, 95 % interval") + r".*" + f", {np.median(times):.1f} ms"
        assert re.search(tip, drawn.replace("\u00a0", " "))


def test_depths_that_start_or_execute_otherwise_are_curves_of_their_own(tmp_path):
    ways = {"warm_starts": ("noise", "half"), "horizons": ("4", "8")}
    run = write_run(tmp_path / "run", stops=DEPTHS[:3], n_tasks=2, episodes=4, **ways)
    (series,) = group_runs(load_runs([run]))
    assert len(series.ladders) == 4
    for rules in series.ladders:
        assert [rule.depth for rule in rules] == [1, 2, 4]
        assert len({(rule.ask.warm_start, rule.records[0].horizon) for rule in rules}) == 1
    drawn = success_against_depth([series], 1000)
    assert len(re.findall(r'<path[^>]*class="line (other )?c0"', drawn)) == 4
    for name in ("fixed depth, half start, 8 actions", "fixed depth, 4 actions"):
        assert f">{name}</text>" in drawn.replace("\u00a0", " ")
    assert best_fixed(series) in series.ladder


def test_names_too_long_for_either_side_stay_in_the_figure(tmp_path):
    stops = (StopRule.fixed(16), ADAPTIVE, replace(ADAPTIVE, defer=0.1))
    run = write_run(tmp_path / "run", stops=stops, n_tasks=2, episodes=4, warm_starts=("noise", "half"))
    drawn = success_against_depth(group_runs(load_runs([run])), 900)
    names = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)" class="label a\d">([^<]*)<', drawn)
    assert len(names) == 4
    for at, anchor, name in names:
        first = float(at) - (7.3 * len(name) if anchor == "end" else 0)
        assert 0 <= first <= first + 7.3 * len(name) <= 901
    assert len(set(re.findall(r'class="label (a\d)"', drawn))) == 4


def test_markup_in_the_data_is_shown_not_run(tmp_path):
    run = write_run(tmp_path / "run", stops=(*DEPTHS, ADAPTIVE), n_tasks=1, episodes=1)
    log = run / EPISODES_FILE
    log.write_text(log.read_text().replace("pick up", "<script>alert(1)</script>&amp;"))
    assert "script" not in check(render(load_runs([run]))).tags


def test_bad_input(tmp_path):
    with pytest.raises(RecordError, match="rdvla eval"):
        load_runs([tmp_path])
    with pytest.raises(ConfigError, match="at least one"):
        load_runs([])
    run = write_run(tmp_path / "run", stops=DEPTHS[:1], n_tasks=1, episodes=1)
    with pytest.raises(ConfigError, match="twice"):
        load_runs([run, tmp_path / "x" / ".." / "run"])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_report(load_runs([run]), tmp_path / "file" / "report.html")
    for damaged in ("{", "[]", '{"command": null}', '{"config": 3}', '{"schema": 2}'):
        (run / "run.json").write_text(damaged)
        with pytest.raises(RecordError, match=r"run\.json"):
            load_runs([run])
    (run / EPISODES_FILE).write_text("")
    with pytest.raises(RecordError, match="no finished episode"):
        load_runs([run])


def test_pairs_and_exact_test(tmp_path):
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == mcnemar(0, 5) == 0.0625
    assert mcnemar(2, 10) == pytest.approx(0.03857, abs=1e-5)  # R: binom.test(2, 12)$p.value
    series = group_runs(load_runs([write_run(tmp_path / "run", stops=(DEPTHS[0], DEPTHS[4]), episodes=20)]))[0]
    shallow, deep = series.fixed
    result = pair(shallow, deep)
    gain = deep.summary.rate.successes - shallow.summary.rate.successes
    assert result.n == 80
    assert result.only_second - result.only_first == gain
    assert result.differs


def test_scales_ticks_and_labels():
    assert Scale((1, 100), (0, 10), log=True)(10) == pytest.approx(5)
    assert Scale((0, 4), (10, 0))(1) == 7.5
    assert nice_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert decades(1e-3, 0.5) == pytest.approx([1e-3, 1e-2, 1e-1])
    moved = spread([10, 11, 12, 300], 5, 0, 100)
    assert moved == sorted(moved)
    assert min(b - a for a, b in itertools.pairwise(moved)) >= 5
    assert moved[-1] == 100
    assert not any(map(math.isnan, moved))


def test_rules_that_no_figure_has_room_for_are_named(tmp_path):
    stops = [StopRule("action_l2", threshold) for threshold in (1e-1, 1e-2, 1e-3, 1e-4)]
    run = write_run(tmp_path / "run", stops=tuple(stops), n_tasks=1, episodes=2)
    text = check(render(load_runs([run]))).text
    assert "Not drawn here: action_l2 < 0.0001." in text
    for stop in stops:
        assert f"{stop.condition}: " in text
