"""Traces to full depth: the episode stays the same, and a table of what every rule would have seen is kept."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from eval_fakes import LinePolicy, suites

from rdvla.envs import find_suite
from rdvla.errors import ConfigError, RecordError
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import read_records
from rdvla.eval.runner import evaluate
from rdvla.eval.traces import encode, read_trace
from rdvla.policies.sources import LoadOptions, choose_policy
from rdvla.report.load import group_runs, load_runs
from rdvla.report.page import write_report
from rdvla.report.traces import trace_section
from rdvla.robot.client import RemotePolicy
from rdvla.server.background import serving
from rdvla.stops import StopRule, rules
from rdvla.types import ActionChunk
from serve_fakes import QUICK

STOPS = (StopRule.fixed(3), StopRule("action_mse", threshold=1e-3, max_depth=12))
DEPTH = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    import bench_fakes

    return bench_fakes.save_checkpoint(tmp_path_factory.mktemp("policy"))


def play(factory, output, trace_depth, stops=STOPS, state=0):
    config = EvalConfig(
        policy="small", suites=("toy",), task_ids=(0,), init_states=(state,), stops=stops, trace_depth=trace_depth
    )
    return evaluate(config, suites={"toy": find_suite("toy")}, policy_factory=factory, output=output)


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    _, _, factory = choose_policy(checkpoint, None, LoadOptions())
    play(factory, folder / "plain", None)
    play(factory, folder / "traced", DEPTH)
    return folder


def test_the_episodes_are_the_same(runs):
    plain, traced = (read_records(runs / name) for name in ("plain", "traced"))
    for one, other in zip(plain, traced, strict=True):
        assert (one.iterations, one.convergence, one.steps) == (other.iterations, other.convergence, other.steps)
        assert one.trace is None
    assert "trace" not in json.loads((runs / "plain" / "episodes.jsonl").read_text().splitlines()[0])


def test_the_table_says_what_every_rule_would_have_seen(runs):
    for record in read_records(runs / "traced"):
        table = read_trace(runs / "traced" / record.trace)
        assert {"decision", "iteration", "executed", "to_full", *rules()} == set(table)
        assert len(table["decision"]) == len(record.iterations) * DEPTH
        assert tuple(table["iteration"][table["executed"]]) == record.iterations
        assert (table["to_full"][table["iteration"] == DEPTH] == 0).all()
        for number, seen in enumerate(record.convergence):
            column = table["action_mse"][table["decision"] == number][1 : 1 + len(seen)]
            np.testing.assert_allclose(column, seen, rtol=1e-3)


def test_a_remote_policy_sends_its_traces(runs, checkpoint, tmp_path):
    _, _, factory = choose_policy(checkpoint, None, LoadOptions())
    with serving(factory(), QUICK) as server:
        records = play(partial(RemotePolicy, server.url), tmp_path, DEPTH, STOPS[1:])
    local = read_records(runs / "traced")[1]
    here, there = (read_trace(path) for path in (runs / "traced" / local.trace, tmp_path / records[0].trace))
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


def test_the_report_shows_how_far_every_iteration_is_from_full_depth(runs, tmp_path):
    write_report(load_runs([runs / "traced"]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("From full depth, ") == 2 * len(STOPS)  # a wide and a narrow figure each
    assert "from those at depth 12" in page
    write_report(load_runs([runs / "plain"]), tmp_path / "page.html")
    assert "full depth" not in (tmp_path / "page.html").read_text()
    (runs / "traced" / read_records(runs / "traced")[0].trace).unlink()
    with pytest.raises(RecordError, match="cannot read the trace"):
        write_report(load_runs([runs / "traced"]), tmp_path / "page.html")


def test_distances_to_different_depths_are_not_averaged(runs, checkpoint, tmp_path):
    _, _, factory = choose_policy(checkpoint, None, LoadOptions())
    deeper = play(factory, tmp_path / "deeper", 16, STOPS[1:], state=1)
    (series,) = group_runs(load_runs([runs / "traced", tmp_path / "deeper"]))
    (rule,) = series.adaptive
    assert len(rule.played) == 2
    sentence = trace_section(series, rule).sentence
    assert (
        f"from those at depth 16 (mean squared difference of normalised actions, {len(deeper[0].iterations)} "
        in sentence
    )


def test_a_policy_without_traces_is_named(tmp_path):
    config = EvalConfig(policy="x", suites=("line",), task_ids=(0,), init_states=(0,), trace_depth=4)
    with pytest.raises(ConfigError, match="gives no traces"):
        evaluate(config, suites=suites(), policy_factory=LinePolicy, output=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"trace_depth is 8, but action_mse\(0\.001, max 12\) may take 12 iterations"):
        play(LinePolicy, tmp_path / "shallow", 8)
    with pytest.raises(ConfigError, match="a decision took 5 iterations, 4 were traced"):
        encode([ActionChunk(np.zeros((1, 7), np.float32), 5, trace={"to_full": np.zeros(4, np.float32)})])
    with pytest.raises(ConfigError, match="trace_depth must be at least 2"):
        EvalConfig(policy="x", suites=("line",), task_ids=(0,), init_states=(0,), trace_depth=1)


def test_damaged_traces_are_named(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(RecordError, match="cannot read the trace"):
        read_trace(path)
    np.savez_compressed(path, decision=np.arange(999))
    whole = path.read_bytes()
    for damaged in (b"PK nothing", b"", whole[:-30], whole[:100] + b"?" * 200 + whole[300:]):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match="cannot read the trace"):
            read_trace(path)
    np.savez(path, decision=np.zeros(2))
    with pytest.raises(RecordError, match="is no trace"):
        read_trace(path)
