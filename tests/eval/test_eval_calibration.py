"""Calibration: the replay is what the policy does, and a threshold keeps what it was chosen for."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rdvla.checkpoints.calibrated import store_default_stop
from rdvla.cli.calibrate import calibrate_command, format_table
from rdvla.cli.main import app
from rdvla.envs import find_suite
from rdvla.errors import CheckpointError, ConfigError
from rdvla.eval.calibration import Target, calibrate, fit
from rdvla.eval.deferring import fit_deferred, fit_gate
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import read_records
from rdvla.eval.replay import Decisions, StageCosts, agreement, read_decisions, replay
from rdvla.eval.runner import evaluate
from rdvla.model.stopping import make_criterion
from rdvla.policies import load_policy
from rdvla.policies.sources import LoadOptions, choose_policy, fingerprint
from rdvla.stops import StopRule, rules
from report_fakes import edit

DEPTH = 8
STOPS = (
    StopRule("action_mse", threshold=1e-3, max_depth=DEPTH),
    StopRule("cosine", threshold=0.999, max_depth=DEPTH),
    StopRule("latent", threshold=0.2, min_depth=3, max_depth=6),
    StopRule("action_mse", threshold=1e-3, max_depth=DEPTH, defer=0.3),
    StopRule("cosine", threshold=0.999, min_depth=4, max_depth=7, defer=0.1),
    StopRule.fixed(3),
)


def options(**given):
    usual = {"depth": None, "ms": None, "change": None, "stop": None, "delta": None, "min_depth": None}
    usual |= {"max_depth": None, "defer": False, "same": None, "rule": None, "folds": 5, "json": None, "write": None}
    return usual | given


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A checkpoint, and its traced evaluation."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    import bench_fakes

    folder = tmp_path_factory.mktemp("calibration")
    bench_fakes.save_checkpoint(folder / "policy")
    _, _, factory = choose_policy(folder / "policy", None, LoadOptions())
    config = EvalConfig(
        policy="small", suites=("toy",), task_ids=(0, 1), init_states=(0,), stops=STOPS, trace_depth=DEPTH
    )
    evaluate(config, suites={"toy": find_suite("toy")}, policy_factory=factory, output=folder / "run")
    return folder


@pytest.fixture
def decisions():
    """Metrics that halve at every iteration from where each decision begins; four tasks that differ."""
    rng = np.random.default_rng(0)
    start = np.exp(rng.normal(size=(400, 1)) + np.repeat([0.0, 0.1, 0.2, 0.3], 100)[:, None])
    falling = (start * 0.5 ** np.arange(DEPTH)).astype(np.float32)
    falling[:, 0] = np.nan
    to_full = np.nan_to_num(falling, nan=9.0) * (np.arange(DEPTH) < DEPTH - 1)
    return Decisions(
        episodes=4,
        tasks=[f"toy {number // 100}" for number in range(400)],
        numbers=[number // 100 for number in range(400)],
        metrics=dict.fromkeys(rules(), falling / 100),
        to_full=to_full.astype(np.float32),
        executed=np.full(400, DEPTH),
        rules=[None] * 400,
        costs=StageCosts(rest=10, iteration=2, decoding=1),
    )


@pytest.mark.parametrize("name", rules())
def test_a_rule_passes_where_its_criterion_passes(name):
    values = torch.tensor([0.0, 1e-3, 1e-3 + 1e-10, 0.00099999, 0.03, 0.029999, 1.0, torch.nan], dtype=torch.float32)
    for threshold in (rules()[name].default_threshold, 0.5):
        ours = rules()[name].passed(values.numpy(), threshold)
        np.testing.assert_array_equal(ours, make_criterion(StopRule(name, threshold)).passed(values).numpy())


def test_the_replay_stops_where_the_policy_did(played):
    found = read_decisions([played / "run"])
    assert (found.episodes, found.depth) == (2 * len(STOPS), DEPTH)
    assert len(set(found.executed)) > 2
    assert agreement(found) == (len(found.tasks), len(found.tasks))
    assert found.costs is not None
    assert min(vars(found.costs).values()) > 0
    counted = [count for record in read_records(played / "run") for count in record.signals.get("codas", ())]
    replayed = [
        count
        for rule in STOPS
        if rule.name != "fixed" and rule.spec.reads == "actions"
        for count in replay(rule, found).decodings[[each == rule for each in found.rules]]
    ]
    assert sorted(counted) == sorted(replayed)
    elsewhere = replace(found, executed=found.executed % DEPTH + 1)
    assert agreement(elsewhere) == (0, len(found.tasks))


def test_every_rule_keeps_to_what_was_asked(decisions):
    for base in (StopRule(name, max_depth=DEPTH) for name in rules()):
        outcome = replay(fit(base, decisions, Target("depth", 4)), decisions)
        assert 3.9 < outcome.iterations.mean() <= 4
        outcome = replay(fit(base, decisions, Target("change", 0.01)), decisions)
        assert 0.009 < outcome.change.mean() <= 0.01
    actions, latents = (StopRule(name, max_depth=DEPTH) for name in ("action_mse", "latent"))
    deeper = [replay(fit(base, decisions, Target("ms", 22)), decisions) for base in (actions, latents)]
    for outcome, by_decision in zip(deeper, (3, 2), strict=True):
        ms = outcome.milliseconds(decisions.costs)
        assert 21.7 < ms.mean() <= 22
        fixed = 10 if by_decision == 3 else 11
        np.testing.assert_array_equal(ms, fixed + by_decision * outcome.iterations)
    assert deeper[1].iterations.mean() > deeper[0].iterations.mean()


def test_held_out_tasks_are_measured_with_what_the_others_gave(decisions):
    (found,) = calibrate([StopRule("latent", max_depth=DEPTH)], decisions, Target("depth", 4), folds=4)
    assert len(set(found.thresholds)) > 1
    by_hand = []
    for number in range(4):
        mine = np.array([task == f"toy {number}" for task in decisions.tasks])
        rule = StopRule("latent", found.thresholds[number], max_depth=DEPTH)
        assert replay(rule, decisions).iterations[~mine].mean() <= 4
        by_hand.append(replay(rule, decisions).iterations[mine].mean())
    held_out = found.held_out.iterations
    assert held_out.value == pytest.approx(np.mean(by_hand))
    assert held_out.low < held_out.value < held_out.high
    one_task = replace(decisions, tasks=["toy 0"] * 400)
    assert calibrate([found.rule], one_task, Target("depth", 4), folds=4)[0].held_out is None


def test_a_gate_keeps_the_wished_share_of_stops_and_no_smaller_one_does(decisions):
    noisy = np.exp(np.random.default_rng(1).normal(scale=0.5, size=(400, DEPTH))).astype(np.float32)
    metrics = decisions.metrics | {"latent": decisions.metrics["latent"] * noisy}
    decisions = replace(decisions, metrics=metrics)
    plain = StopRule("action_mse", 4e-4, max_depth=DEPTH)

    def same(rule):
        return (replay(rule, decisions).iterations == replay(plain, decisions).iterations).mean()

    for share in (0.5, 0.9, 0.995):
        rule = fit_gate(plain, decisions, share)
        assert same(rule) >= share > same(replace(rule, defer=0.98 * rule.defer))
    found = fit_deferred(plain, decisions, 0.9, folds=4)
    assert len(set(found.gates)) > 1
    by_hand = [
        replay(replace(plain, defer=gate), decisions).decodings[100 * number : 100 * (number + 1)].mean()
        for number, gate in enumerate(found.gates)
    ]
    assert found.decodings.value == pytest.approx(np.mean(by_hand))
    assert 2 < found.decodings.value < found.plain.value == replay(plain, decisions).decodings.mean()
    assert 0.85 < found.same.value < 1
    alone = fit_deferred(plain, replace(decisions, tasks=["toy 0"] * 400), 0.9, folds=4)
    assert (alone.gates, alone.same.value) == ((), same(alone.rule))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        fit_gate(plain, decisions, 1.0)


def test_what_cannot_be_kept_or_replayed_is_said(decisions):
    base = StopRule("latent", max_depth=DEPTH)
    with pytest.raises(ConfigError, match=r"no threshold of 'latent' keeps to 1\.5 iterations: it is 2 at"):
        fit(base, decisions, Target("depth", 1.5))
    with pytest.raises(ConfigError, match="traces end at 8"):
        replay(StopRule("latent", max_depth=9), decisions)
    with pytest.raises(ConfigError, match="check_every must be 1"):
        replay(StopRule("latent", max_depth=DEPTH, check_every=2), decisions)
    with pytest.raises(ConfigError, match="no column 'latent'"):
        replay(base, replace(decisions, metrics={}))
    with pytest.raises(ConfigError, match="drop --ms"):
        fit(base, replace(decisions, costs=None), Target("ms", 20))
    with pytest.raises(ConfigError, match="depth must be a number above 0"):
        Target("depth", -1)


def test_the_command_writes_numbers_and_the_policys_default(played, tmp_path, capsys):
    import bench_fakes

    policy = bench_fakes.save_checkpoint(tmp_path / "policy")
    (policy / "README.md").write_text("# small\n\n## When it stops\n\nnever\n\n## Data\n\nnone\n")
    assert str(load_policy(policy).default_stop) == "fixed(12)"
    calibrate_command([played / "run"], **options(depth=4.0, stop="action_mse", json=tmp_path / "a.json", write=policy))
    document = json.loads((tmp_path / "a.json").read_text())
    (rule,) = document["rules"]
    assert document["replay"]["same"] == document["replay"]["of"] == document["decisions"] > 0
    assert rule["fitted"]["iterations"]["value"] <= 4
    loaded = load_policy(policy)
    assert loaded.default_stop == StopRule(**rule["rule"])
    assert loaded.metadata.extra["default_stop"] == str(loaded.default_stop)
    card = (policy / "README.md").read_text()
    assert card.count("## When it stops") == 1
    assert "never" not in card
    assert f"`{loaded.default_stop}`, chosen for at most 4 iterations" in card
    assert "## Data\n\nnone\n" in card
    assert "action_mse" in capsys.readouterr().out


def test_a_card_that_is_no_text_is_named_and_nothing_is_written(played, tmp_path):
    policy = shutil.copytree(played / "policy", tmp_path / "policy")
    (policy / "README.md").write_bytes(b"\xff\xfe")
    before = (policy / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"cannot read the model card '.*README\.md'"):
        store_default_stop(policy, StopRule("latent"), "a sentence")
    assert (policy / "config.json").read_bytes() == before


def test_a_place_without_a_checkpoint_is_said_before_the_traces_are_read(tmp_path):
    with pytest.raises(CheckpointError, match="no folder with a checkpoint of ours"):
        calibrate_command([tmp_path / "no run"], depth=4.0, stop="action_l2", write=tmp_path)


def test_a_gate_is_written_beside_its_rule(played, tmp_path, capsys):
    import bench_fakes

    policy = bench_fakes.save_checkpoint(tmp_path / "policy")
    wish = options(stop="action_mse", delta=1e-3, max_depth=DEPTH, defer=True, same=0.9)
    calibrate_command([played / "run"], **wish | {"json": tmp_path / "a.json", "write": policy})
    (found,) = json.loads((tmp_path / "a.json").read_text())["deferred"]
    assert load_policy(policy).default_stop == StopRule(**found["rule"])
    assert found["rule"]["defer"] > 0
    assert found["decodings"]["value"] <= found["plain"]["value"]
    assert f"changes by less than {found['rule']['defer']:g}" in (policy / "README.md").read_text()
    assert "asking the Coda only near the threshold" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="give one with --defer"):
        calibrate_command([played / "run"], **options(stop="latent", delta=0.1, max_depth=DEPTH, defer=True))


@pytest.fixture
def copy(played, tmp_path):
    return shutil.copytree(played / "run", tmp_path / "run")


def test_traces_that_do_not_belong_together_are_refused(copy):
    with pytest.raises(ConfigError, match="named twice"):
        read_decisions([copy, copy.parent / "run"])
    edit(copy, lambda record: record | {"warm_start": "half"} if record["stop"]["name"] == "cosine" else record)
    with pytest.raises(ConfigError, match=r"different starts \(--start\): half, noise; name"):
        read_decisions([copy])
    edit(copy, lambda record: record | {"warm_start": "noise", "horizon": "4" if record["task_id"] else "8"})
    with pytest.raises(ConfigError, match=r"ways to execute chunks \(--horizon, --strategy\): 4, 8"):
        read_decisions([copy])
    edit(copy, lambda record: record | {"horizon": "8"})
    edit(copy, lambda r: r | {"versions": r["versions"] | {"checkpoint": "a" if r["task_id"] else "b"}})
    with pytest.raises(ConfigError, match=r"different checkpoints \(a, b\)"):
        read_decisions([copy])


def test_costs_of_a_rule_that_was_left_to_the_policy(copy):
    with_codas = read_decisions([copy]).costs
    edit(copy, lambda record: record | {"stop": None} if "codas" in record.get("signals", {}) else record)
    assert read_decisions([copy]).costs == with_codas
    edit(copy, lambda record: record | {"stop": None})
    assert read_decisions([copy]).costs is None


def test_another_checkpoint_than_the_one_that_played_is_named(played, copy, tmp_path, capsys):
    policy = shutil.copytree(played / "policy", tmp_path / "policy")
    digest = fingerprint(policy)
    for name, words in ((digest, ""), ("0123456789abcdef", f"'{policy}' has the fingerprint {digest}, the episodes")):
        edit(copy, lambda r, name=name: r | {"versions": r["versions"] | {"checkpoint": name}})
        policy_again = shutil.copytree(played / "policy", policy, dirs_exist_ok=True)
        calibrate_command([copy], **options(depth=4.0, stop="action_mse", write=policy_again))
        assert words in (said := capsys.readouterr().err)
        assert bool(said) == bool(words)


def test_wishes_that_contradict_each_other_are_refused(played, tmp_path):
    run = [played / "run"]
    with pytest.raises(ConfigError, match="give one of"):
        calibrate_command(run, **options(depth=4.0, ms=3.0))
    with pytest.raises(ConfigError, match="one --stop rule"):
        calibrate_command(run, **options(delta=0.1))
    with pytest.raises(ConfigError, match="unknown adaptive rule 'fixed'"):
        calibrate_command(run, **options(stop="fixed"))
    with pytest.raises(ConfigError, match="--write stores one rule"):
        calibrate_command(run, **options(depth=4.0, write=tmp_path))
    with pytest.raises(CheckpointError, match="no place for a default rule"):
        calibrate_command(run, **options(depth=4.0, stop="latent", write=tmp_path))
    with pytest.raises(ConfigError, match=r"--same 0\.9 belongs to --defer"):
        calibrate_command(run, **options(depth=4.0, same=0.9))
    with pytest.raises(ConfigError, match="folds must be at least 2"):
        calibrate_command(run, **options(depth=4.0, folds=1))
    assert "calibrate" in {command.name for command in app.registered_commands}


@pytest.mark.parametrize(("quantity", "value"), [("depth", 40), ("change", 100), ("ms", 1e6)])
def test_a_wish_that_asks_nothing_is_refused(decisions, quantity, value):
    with pytest.raises(ConfigError, match=r"every threshold of 'action_mse' keeps to .* so nothing is asked of it"):
        fit(StopRule("action_mse", max_depth=DEPTH), decisions, Target(quantity, value))


def test_of_one_task_intervals_are_of_its_episodes(decisions):
    one = replace(decisions, tasks=["toy 0"] * len(decisions.tasks))
    (found,) = calibrate([StopRule("action_mse", 1e-3, max_depth=DEPTH)], one, Target("depth", 5), 5)
    assert found.held_out is None
    assert found.fitted.iterations.low < found.fitted.iterations.value < found.fitted.iterations.high
    assert "of one task, so measured where it was fitted" in format_table([found], Target("depth", 5))


def test_every_task_may_be_a_fold_of_its_own(decisions):
    """Of libero_90 there are 90."""
    many = replace(decisions, tasks=[f"task {number % 90}" for number in range(len(decisions.tasks))])
    rule = StopRule("action_mse", 1e-3, max_depth=DEPTH)
    (found,) = calibrate([rule], many, Target("depth", 5), 90)
    assert len(found.thresholds) == 90
    assert len(fit_deferred(rule, many, 0.9, 90).gates) == 90


def test_a_threshold_beside_a_wish_is_refused(played):
    with pytest.raises(ConfigError, match="a threshold is what is looked for"):
        calibrate_command([played / "run"], **options(depth=4.0, stop="action_mse:1e-3"))
