import json
from typing import get_args

import pytest
import typer
from eval_fakes import ToyOracle, ToyReacher
from typer.testing import CliRunner

from rdvla.cli import eval as command
from rdvla.cli.demo import STATE, SUITES, TASK, demo_command
from rdvla.cli.options import StopOptions
from rdvla.cli.report import report_command
from rdvla.errors import CheckpointError, ConfigError
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import read_records
from rdvla.model.freeze import PRECISIONS
from rdvla.policies.sources import LoadOptions, Precision, choose_policy, fingerprint
from rdvla.stops import SAFE_GATE

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("eval")(command.eval_command)
app.command("report")(report_command)


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr(command, "choose_policy", lambda *_, **__: ("oracle", "", ToyOracle))


@pytest.mark.usefixtures("oracle")
def test_toy_suite_from_evaluation_to_report(tmp_path):
    output, page = tmp_path / "run", tmp_path / "report.html"
    arguments = ["eval", "--suite", "toy", "--task-ids", "0,3", "--episodes", 2, "--depth", "1,4", "--stop", "latent"]
    arguments += ["--max-depth", 8, "--horizon", "2", "--workers", 2, "--video", 1, "--output", output]
    result = call(*arguments)
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()[2:5]] == [
        ["fixed(1)", "0.0%"],
        ["fixed(4)", "100.0%"],
        ["latent(0.03,", "max"],
    ]
    assert "toy 3" in result.stdout
    records = read_records(output)
    assert len(records) == 2 * 2 * 3
    assert {record.init_state for record in records if record.video} == {0}
    assert {record.stop.max_depth for record in records} == {1, 4, 8}
    before = (output / "episodes.jsonl").read_bytes()
    assert call(*arguments).stdout == result.stdout
    assert (output / "episodes.jsonl").read_bytes() == before
    assert call("report", output, "--output", page).exit_code == 0
    assert page.read_text().count("<video") == 6


def test_strategies_and_delays_are_rules_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "choose_policy", lambda *_, **__: ("reacher", "", ToyReacher))
    base = ["eval", "--suite", "toy", "--task-ids", "0", "--episodes", 2, "--output"]
    assert call(*base, tmp_path / "plain").exit_code == 0
    arguments = [*base, tmp_path / "all", "--strategy", "synchronous,background:4,ensembling:2", "--delay", "0,3"]
    result = call(*arguments)
    assert result.exit_code == 0
    labels = ["5", "5, delay 3", "background:4", "background:4, delay 3", "ensembling:2", "ensembling:2, delay 3"]
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[2:8]] == [f"default / {text}" for text in labels]
    records = {text: [r for r in read_records(tmp_path / "all") if r.execution == text] for text in labels}
    plain = read_records(tmp_path / "plain")
    timed = {"latency_ms", "wall_s"}
    assert [r.model_dump(exclude=timed) for r in records["5"]] == [r.model_dump(exclude=timed) for r in plain]
    assert "strategy" not in (tmp_path / "plain" / "episodes.jsonl").read_text()
    for at_once, late in zip(records["5"], records["5, delay 3"], strict=True):
        assert late.success
        assert late.delay == 3
        assert late.executed == at_once.executed, "a target that stands still is reached by the same actions"
        assert late.steps == at_once.steps + 3 * len(late.iterations)
    for record in records["background:4, delay 3"]:
        assert (record.strategy, record.horizon) == ("background:4", "")
        assert record.success
        assert record.steps == 3 + sum(record.executed), "only the first answer is waited for"
    before = (tmp_path / "all" / "episodes.jsonl").read_bytes()
    assert call(*arguments).stdout == result.stdout
    assert (tmp_path / "all" / "episodes.jsonl").read_bytes() == before
    page = tmp_path / "report.html"
    assert call("report", tmp_path / "all", "--output", page).exit_code == 0
    assert "background:4, delay 3" in page.read_text()


def test_a_delay_that_outlasts_every_chunk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "choose_policy", lambda *_, **__: ("reacher", "", ToyReacher))
    arguments = ["--suite", "toy", "--task-ids", "0", "--episodes", 1, "--output", tmp_path / "out"]
    with pytest.raises(ConfigError, match="only the strategy 'synchronous'"):
        call("eval", *arguments, "--strategy", "ensembling", "--delay", 8)


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "0"], "smallest depth is 1"),
        (["--depth", "two"], "depth 'two'"),
        (["--stop", "action_l1"], "Did you mean 'action_l2'"),
        (["--stop", "fixed"], "adaptive rule"),
        (["--delta", "1e-3"], "add --stop"),
        (["--stop", "action_l2", "--delta", "small"], "delta 'small'"),
        (["--stop", "action_l2", "--delta", "nan"], "finite"),
        (["--stop", "action_l2,latent", "--delta", "1e-3"], "one --stop rule"),
        (["--stop", "action_l2:1e-3", "--delta", "1e-3"], "one --stop rule"),
        (["--stop", "action_l2:small"], "stop 'small'"),
        (["--stop", "latent", "--defer", "0.1"], "nothing to defer"),
        (["--stop", "action_l2", "--min-depth", "9", "--max-depth", "8"], "greater than max_depth"),
        (["--stop", "action_l2", "--check-every", "0"], "check_every"),
        (["--horizon", "linear"], "linear_decay"),
        (["--horizon", "0"], "at least 1 action"),
        (["--strategy", "backgrund"], "Did you mean 'background'"),
        (["--strategy", "synchronous:3"], "belongs to background and ensembling only"),
        (["--strategy", "background", "--horizon", "5"], "--horizon belongs to the strategy synchronous"),
        (["--delay", "-1"], "delay '-1'"),
        (["--episodes", "0"], "episodes"),
        (["--task-ids", "99"], "has no task 99"),
        (["--init-states", "19-10"], "runs backwards"),
        (["--episodes", "100000"], r"episodes is 100000, but toy task 0 \(.*\) has 50 initial states: 0-49"),
        (["--init-states", "49-50"], r"names 50, but toy task 0 \(.*\) has 50 initial states: 0-49"),
        (["--workers", "0"], "workers"),
        (["--seed", "-1"], "seed"),
        (["--policy", "expert", "--start", "half"], "does not iterate; drop .*--start"),
    ],
)
def test_wrong_arguments_leave_no_episode(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        call("eval", "--suite", "toy", "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_unknown_precision_is_refused_at_once(tmp_path):
    result = call("eval", "--checkpoint", tmp_path, "--suite", "toy", "--output", tmp_path, "--precision", "int7")
    assert result.exit_code == 2
    assert "'int7' is not one of 'float32', 'bfloat16', 'int8'" in result.output
    assert get_args(Precision) == PRECISIONS


def test_the_demo_replaces_nothing_but_a_demo(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for output in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ConfigError, match="other than an earlier demo"):
            demo_command(str(tmp_path), output)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(("states", "message"), [((0,), "other than an earlier demo"), ((STATE,), "no checkpoint")])
def test_an_evaluation_is_no_demo_and_a_mistake_costs_no_demo(tmp_path, states, message):
    settings = EvalConfig(policy="x", suites=SUITES, task_ids=(TASK,), init_states=states, videos=1)
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "config": settings.model_dump(mode="json")}))
    (tmp_path / "episodes.jsonl").write_text("")
    with pytest.raises((ConfigError, CheckpointError), match=message):
        demo_command("nosuchpolicy", tmp_path)
    assert (tmp_path / "episodes.jsonl").exists()


@pytest.mark.usefixtures("oracle")
def test_unknown_suite(tmp_path):
    pytest.importorskip("libero", reason="the known suites are those of the installed LIBERO")
    for suite, nearest in (("libero_objects", "libero_object"), ("toi", "toy")):
        with pytest.raises(ConfigError, match=f"unknown suite '{suite}'.*'{nearest}'"):
            call("eval", "--suite", suite, "--output", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "toi"], r"unknown suite 'toi'.*'toy'"),
        (["--suite", "toy", "--task-ids", "99"], "has no task 99"),
        (["--suite", "toy", "--task-ids", "99", "--seeds", "1"], "has no task 99"),
        (["--suite", "toy", "--init-states", "50"], "has 50 initial states"),
        (["--suite", "toy", "--chains", "0-1000"], "has 50 initial states"),
        (["--suite", "toy", "--horizon", "linear"], "linear_decay"),
        (["--suite", "toy", "--workers", "0"], "workers"),
    ],
)
def test_a_slip_is_said_before_the_checkpoint_is_looked_at(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(command, "choose_policy", lambda *_, **__: pytest.fail("gigabytes were hashed first"))
    with pytest.raises(ConfigError, match=message):
        call("eval", *arguments, "--checkpoint", tmp_path, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("oracle")
def test_budgets_are_measured_and_recorded(tmp_path):
    """The oracle takes a millisecond per iteration, and at depth 1 it fails."""
    arguments = ["eval", "--suite", "toy", "--task-ids", "0", "--episodes", "1", "--output", tmp_path, "--horizon", "1"]
    assert call(*arguments, "--depth", "4", "--budget-ms", "1,3").exit_code == 0
    short, long = read_records(tmp_path)
    assert (short.rule, short.budget_ms, set(short.iterations), short.success) == ("fixed(4), 1 ms", 1.0, {1}, False)
    assert (long.rule, long.budget_ms, set(long.iterations), long.success) == ("fixed(4), 3 ms", 3.0, {3}, True)
    assert call("report", tmp_path, "--output", tmp_path / "report.html").exit_code == 0
    assert "depth 4, 3 ms" in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="budgets_ms was"):
        call(*arguments, "--depth", "4")
    for wrong in ("0", "-1", "nan", "fast", "inf"):
        with pytest.raises(ConfigError, match="budget-ms"):
            call(*arguments, "--budget-ms", wrong)


def test_rules_of_the_command_line():
    rules = StopOptions("1,8", "action_l2", "1e-2,1e-3", 2).rules()
    labels = ["fixed(1)", "fixed(8)", "action_l2(0.01, max 32, min 2)", "action_l2(0.001, max 32, min 2)"]
    assert [str(rule) for rule in rules] == labels
    assert rules[2].min_depth == 2
    assert StopOptions().rules() == (None,)
    rules = StopOptions(stop="action_mse", delta="1e-3", defer="no,safe,0.1").rules()
    assert [(rule.threshold, rule.defer) for rule in rules] == [(1e-3, None), (1e-3, SAFE_GATE), (1e-3, 0.1)]
    with pytest.raises(ConfigError, match="nothing to defer"):
        StopOptions(stop="latent", defer="safe").rules()
    with pytest.raises(ConfigError, match="defer 'early' is not a number"):
        StopOptions(stop="action_mse", defer="early").rules()
    with pytest.raises(ConfigError, match="--defer belongs to an adaptive rule"):
        StopOptions(depth="4", defer="safe").rules()
    assert [rule.name for rule in StopOptions(stop="latent,cosine", max_depth=8).rules()] == ["latent", "cosine"]


def test_choice_of_the_policy(tmp_path):
    assert choose_policy(None, "expert")[0] == "expert"
    for checkpoint, policy in [(None, None), (tmp_path, "expert"), (None, "expart")]:
        with pytest.raises(ConfigError):
            choose_policy(checkpoint, policy)
    with pytest.raises(ConfigError, match="'expert' is no checkpoint; drop precision=int8"):
        choose_policy(None, "expert", LoadOptions(precision="int8"))
    (tmp_path / "config.json").write_text('{"format": "rdvla"}')
    assert choose_policy(tmp_path, None)[0] == choose_policy(f"{tmp_path}/", None)[0] == str(tmp_path)
    options = LoadOptions(device="cuda", precision="int8")
    assert choose_policy(tmp_path, None, options)[0] == f"{tmp_path} (device=cuda, precision=int8)"
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        choose_policy(tmp_path / "missing", None)


def test_experts_and_demonstrators_are_measured_on_seeded_placements(tmp_path):
    arguments = ["eval", "--suite", "toy", "--task-ids", "4", "--policy", "expert", "--seeds", "5000-5002"]
    assert call(*arguments, "--output", tmp_path / "plain").exit_code == 0
    assert call(*arguments, "--noise", "--output", tmp_path / "noise").exit_code == 0
    plain, noise = (read_records(tmp_path / name) for name in ("plain", "noise"))
    assert (
        [record.placement_seed for record in plain] == [record.placement_seed for record in noise] == [5000, 5001, 5002]
    )
    assert all(record.success and record.init_state is None for record in plain + noise)
    assert [record.steps for record in plain] != [record.steps for record in noise]
    with pytest.raises(ConfigError, match="policy was 'expert', now 'expert"):
        call(*arguments, "--noise", "--output", tmp_path / "plain")
    with pytest.raises(ConfigError, match="--noise disturbs the expert only"):
        call("eval", "--suite", "toy", "--policy", "ws://localhost:1", "--noise", "--output", tmp_path / "x")


@pytest.mark.parametrize("arguments", [["--depth", "4"], ["--stop", "latent"], ["--horizon", "5"]])
def test_expert_takes_no_depth(tmp_path, arguments):
    with pytest.raises(ConfigError, match="expert"):
        call("eval", "--policy", "expert", "--suite", "toy", "--output", tmp_path, *arguments)


def test_fingerprint_follows_what_the_policy_is_made_of(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(tmp_path)
    assert first == fingerprint(tmp_path)
    assert len(first) == 16
    (tmp_path / "README.md").write_text("a model card is no part of the policy")
    assert fingerprint(tmp_path) == first
    (tmp_path / "config.json").write_text("{ }")
    assert fingerprint(tmp_path) != first


def test_rules_with_thresholds_of_their_own():
    rules = StopOptions(stop="action_mse:1e-4,latent:0.03,cosine", defer="no,0.1", max_depth=16).adaptive()
    assert [str(rule) for rule in rules] == [
        "action_mse(0.0001, max 16)",
        "action_mse(0.0001, max 16, defer 0.1)",
        "latent(0.03, max 16)",
        "cosine(0.999, max 16)",
        "cosine(0.999, max 16, defer 0.1)",
    ]
