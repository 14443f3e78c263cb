"""Every flag of every command is passed by some test; here are those that no other test has a use for."""

import re
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import typer
from typer.testing import CliRunner

import rdvla
from rdvla.cli.main import app
from rdvla.errors import CheckpointError, ConfigError
from rdvla.hub import SHIPPED
from rdvla.policies.sources import LoadOptions
from rdvla.stops import StopRule

TESTS = Path(__file__).parents[1]
LOADING = ("--revision", "dev", "--base", "vlm", "--compile")
LOADED = LoadOptions(revision="dev", base="vlm", compile=True)


class Reached(Exception):  # noqa: N818 - no error
    """The command has got to what it was to call, with these arguments."""


def reach(monkeypatch, where):
    def called(*args, **options):
        raise Reached(args, options)

    monkeypatch.setattr(where, called)


def run(*arguments):
    """Run a command; return the arguments of what it reached, or raise what it raised."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, Reached):
        return done.exception.args
    if done.exception is not None:
        raise done.exception
    return done.output


def flags(command, path=()):
    for name, each in getattr(command, "commands", {}).items():
        yield from flags(each, (*path, name))
    for parameter in command.params:
        if isinstance(parameter, click.Option) or parameter.param_type_name == "option":
            yield " ".join(path), parameter.opts


def test_every_flag_occurs_in_a_test():
    texts = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py"))
    passed = set(re.findall(r"--[a-z][\w-]*", texts))
    found = list(flags(typer.main.get_command(app)))
    assert len(found) > 100
    assert not [(command, names) for command, names in found if "--help" not in names and passed.isdisjoint(names)]


def test_how_a_checkpoint_is_loaded(monkeypatch, tmp_path):
    for command, module in (
        (("eval", "--suite", "toy", "--output", tmp_path, "--checkpoint"), rdvla.cli.eval),
        (("collect", "--suite", "toy", "--output", tmp_path, "--take-over-from"), rdvla.cli.collect),
        (("play", "--suite", "toy", "--checkpoint"), rdvla.cli.play),
        (("serve", "--checkpoint"), rdvla.cli.serve),
    ):
        reach(monkeypatch, f"{module.__name__}.choose_policy")
        (args, _) = run(*command, "owner/name", *LOADING)
        assert args == ("owner/name", None, LOADED)


def test_threads_are_a_checkpoints():
    with pytest.raises(ConfigError, match="--threads 2 is for a checkpoint"):
        run("play", "--suite", "toy", "--policy", "expert", "--threads", 2)


def test_collect_keeps_what_it_staged(monkeypatch, tmp_path):
    reach(monkeypatch, "rdvla.collect.collection.collect")
    ((config,), _) = run("collect", "--suite", "toy", "--output", tmp_path, "--keep-staging")
    assert config.keep_staging


def test_eval_starts_and_traces(monkeypatch, tmp_path):
    monkeypatch.setattr("rdvla.cli.eval.choose_policy", lambda *args, **options: ("name", "digest", None))
    reach(monkeypatch, "rdvla.cli.eval.evaluate")
    command = ("eval", "--suite", "toy", "--output", tmp_path, "--checkpoint", "x")
    ((config,), _) = run(*command, "--start", "noise,half", "--trace-depth", 8)
    assert config.warm_starts == ("noise", "half")
    assert config.trace_depth == 8


def test_calibrate_for_a_change(monkeypatch, tmp_path):
    monkeypatch.setattr("rdvla.cli.calibrate.read_decisions", lambda runs: SimpleNamespace(depth=8))
    reach(monkeypatch, "rdvla.cli.calibrate.calibrate")
    (_, _, target, folds), _ = run("calibrate", tmp_path, "--change", 0.25, "--folds", 3)
    assert (target.quantity, target.value, folds) == ("change", 0.25, 3)


def test_calibrate_a_gate_and_an_alarm(monkeypatch, tmp_path):
    rule = StopRule("action_mse", 1e-3, max_depth=8)
    monkeypatch.setattr("rdvla.cli.calibrate.read_decisions", lambda runs: SimpleNamespace(depth=8))
    monkeypatch.setattr("rdvla.cli.calibrate.calibrate", lambda *args: [SimpleNamespace(rule=rule)])
    reach(monkeypatch, "rdvla.cli.calibrate.fit_deferred")
    command = ("calibrate", tmp_path, "--stop", "action_mse", "--delta", 1e-3)
    ((fitted, _, share, folds), _) = run(*command, "--defer", "--same", 0.9)
    assert (fitted, share, folds) == (rule, 0.9, 5)
    monkeypatch.setattr("rdvla.cli.calibrate.read_played", lambda runs, rule: (runs, rule))
    reach(monkeypatch, "rdvla.cli.calibrate.fit_alarm")
    assert run("calibrate", tmp_path, "--alarm", 0.2)[0] == (([tmp_path], None), 0.2)
    assert run("calibrate", tmp_path, "--alarm", 0.2, "--rule", "fixed(8)")[0] == (([tmp_path], "fixed(8)"), 0.2)
    with pytest.raises(ConfigError, match=r"--rule 'fixed\(8\)' belongs to --alarm"):
        run("calibrate", tmp_path, "--rule", "fixed(8)")


def test_serve_an_address_with_a_sentence(monkeypatch):
    with pytest.raises(ConfigError, match=r"host '0\.0\.0\.0' can be reached from other machines"):
        run("serve", "--checkpoint", "x", "--host", "0.0.0.0")
    monkeypatch.setattr("rdvla.cli.serve.choose_policy", lambda *args: ("name", "digest", None))
    monkeypatch.setattr("rdvla.policies.network.load_policy", lambda *args, **options: None)
    reach(monkeypatch, "rdvla.server.server.PolicyServer")
    ((_, settings), _) = run("serve", "--checkpoint", "x", "--instruction", "pick up the bowl")
    assert settings.instruction == "pick up the bowl"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--task-id", 6, "suite 'toy' has no task 6: its task ids are 0-5"),
        ("--show-every", -1, "--show-every must be at least 0, found -1"),
        ("--start", "noise,half", "--start noise,half: one is needed here"),
    ],
)
def test_play_refuses(flag, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        run("play", "--suite", "toy", "--checkpoint", "x", flag, value)


@pytest.mark.parametrize("drawn", [True, False])
def test_the_doctor_draws_or_not(monkeypatch, drawn):
    monkeypatch.setattr("rdvla.doctor.environment.check_environment", list)
    monkeypatch.setattr("rdvla.doctor.reference.check_reference", list)
    reach(monkeypatch, "rdvla.doctor.rendering.check_rendering")
    found = run("doctor", "--rendering" if drawn else "--no-rendering")
    assert (found == ((), {})) == drawn


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--revision", "a revision ('x') belongs to a hub id"), ("--base", "is complete; it takes no base")],
)
def test_convert_refuses(tmp_path, flag, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        run("convert", SHIPPED, tmp_path / "out", flag, "x")


def test_dataset_convert_reads_a_split(monkeypatch, tmp_path):
    reach(monkeypatch, "rdvla.data.rlds.RldsDataset.open")
    for name in ("dataset_info.json", "features.json"):
        (tmp_path / name).touch()
    _, options = run("dataset", "convert", tmp_path, tmp_path / "out", "--split", "validation")
    assert options["split"] == "validation"


def test_pushing(monkeypatch, tmp_path):
    reach(monkeypatch, "rdvla.publish.policy.push_policy")
    known = ("--dataset", "a/data", "--dataset", "b/data", "--base-model", "a/base")
    where = ("--revision", "dev", "--dry-run", tmp_path / "draft")
    (_, to, about), options = run("push", tmp_path, "a/policy", "--license", "mit", *known, *where)
    assert (list(about.datasets), about.base) == (["a/data", "b/data"], "a/base")
    assert (to.revision, options["dry_run"]) == ("dev", tmp_path / "draft")
    reach(monkeypatch, "rdvla.publish.dataset.push_dataset")
    (_, to, _), options = run("dataset", "push", tmp_path, "a/data", *where)
    assert (to.revision, options["dry_run"]) == ("dev", tmp_path / "draft")


def test_an_option_before_the_name_of_a_benchmark_is_not_ignored(tmp_path):
    with pytest.raises(ConfigError, match="--json is ignored before 'images'; give it after that name"):
        run("bench", "--json", tmp_path / "x.json", "images")


def test_the_main_benchmark(monkeypatch):
    reach(monkeypatch, "rdvla.bench.suite.run")
    (plan, _), _ = run("bench", "--only", "head", "--full", "--simulator", "--compile")
    assert (plan.full, plan.compile, plan.chosen) == (True, True, ("head", "simulator"))


def test_the_other_benchmarks(monkeypatch, tmp_path):
    reach(monkeypatch, "rdvla.bench.saving.measure_saving")
    assert run("bench", "saving", "--observations", 3)[0][2] == 3
    reach(monkeypatch, "rdvla.bench.training_memory.measure_memory")
    assert run("bench", "training-memory", "--batch", 4)[0][1] == 4
    monkeypatch.setattr("rdvla.bench.scheduling.recorded_episodes", lambda *args: [])
    reach(monkeypatch, "rdvla.bench.scheduling.measure_scheduling")
    costs = run("bench", "scheduling", tmp_path, "--worker-s", 2, "--env-s", 3)[0][2]
    assert (costs.worker_s, costs.env_s) == (2, 3)
    reach(monkeypatch, "rdvla.bench.server.restart")
    assert run("bench", "server", "restart", "--task-id", 4)[0][2] == 4
