"""Stopping rules are data: one description, read everywhere; a package may add one without touching ours."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from rdvla.errors import ConfigError
from rdvla.model.stopping import Look, make_criterion
from rdvla.server.router import Page
from rdvla.stops import FIXED, StopRule, choose_rule, rules

SOURCE = Path(__file__).parents[1] / "src"

PACKAGE = """
from rdvla.model.stopping import ActionMSE
from rdvla.stops import RuleSpec

SPEC = RuleSpec("loosest", "the largest entry settles", "actions", 10.0, "looser:Loosest")


class Loosest(ActionMSE):
    \"\"\"The largest squared change.\"\"\"

    def metric(self, before, after):
        return (after - before).square().amax(dim=1)
"""


def test_the_limit_is_what_the_criterion_compares_with():
    """What figures draw as "stops below" agrees with the criterion just inside and just outside it."""
    for name, spec in rules().items():
        rule = StopRule(name)
        assert rule.threshold == spec.default_threshold
        criterion = make_criterion(rule)
        for factor, expected in ((0.98, True), (1.02, False)):
            value = torch.tensor([rule.limit * factor])
            assert bool(criterion.passed(value)) is expected, name


def test_criteria_read_what_the_data_says():
    latents, actions = torch.rand(2, 3, 4), torch.rand(2, 3, 2)
    for name, spec in rules().items():
        criterion = make_criterion(StopRule(name))
        assert criterion.needs_actions is (spec.reads == "actions")
        changed = Look(latents + 1, actions if criterion.needs_actions else None)
        value = criterion.measure(Look(latents, actions), changed)
        assert (value < 1e-6).all() == (spec.reads == "actions"), f"{name} reads something else"


def test_fixed_is_no_adaptive_rule():
    assert StopRule.fixed(3).spec is None
    assert StopRule.fixed(3).limit is None
    assert FIXED not in rules()


def test_names_are_checked_and_suggested():
    with pytest.raises(ConfigError, match="Did you mean 'action_mse'"):
        StopRule("action_mze")
    with pytest.raises(ConfigError, match="must be text"):
        StopRule(3)


def test_settings_fix_the_iterations_or_adapt_them():
    assert choose_rule(None, None, threshold=None) is None
    assert choose_rule(4, None, threshold=None) == StopRule.fixed(4)
    assert choose_rule(None, "latent", threshold=0.1, max_depth=None) == StopRule("latent", 0.1)
    say = "policy.{}".format
    for depth, stop, adaptive, message in [
        (4, "latent", {}, r"policy\.depth fixes the iterations and policy\.stop adapts them"),
        (4, None, {"threshold": 0.1}, r"policy\.threshold belongs to an adaptive rule; add policy\.stop"),
        (None, None, {"max_depth": 8}, r"policy\.max_depth belongs to an adaptive rule"),
        (None, "fixed", {"max_depth": 8}, "unknown adaptive rule 'fixed'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            choose_rule(depth, stop, say=say, **adaptive)


def test_the_live_page_offers_every_rule():
    page = Page.load().body.decode()
    assert all(f'<option value="{name}">' in page for name in rules())
    assert "{rules}" not in page


@pytest.fixture
def installed(tmp_path):
    """A distribution outside ours with a rule of its own, as pip would install it."""
    (tmp_path / "looser.py").write_text(textwrap.dedent(PACKAGE))
    metadata = tmp_path / "looser-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: looser\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rdvla.stops]\nloosest = looser:SPEC\n")
    return tmp_path


def rdvla(path, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(SOURCE)))}
    command = [sys.executable, "-m", "rdvla", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_rule_of_another_package_is_evaluated(installed, tmp_path):
    """Its threshold is so loose that it stops at the first comparison: the second iteration."""
    from collections import Counter

    sys.path.insert(0, str(Path(__file__).parent / "bench"))
    import bench_fakes

    checkpoint = bench_fakes.save_checkpoint(tmp_path / "policy")
    command = ("eval", "--checkpoint", checkpoint, "--suite", "toy", "--task-ids", 0, "--episodes", 1)
    done = rdvla(installed, *command, "--stop", "loosest", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()[0])
    assert set(Counter(record["iterations"])) == {2}
    assert record["rule"] == "loosest(10, max 32)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cosine", "'cosine' of rdvla.stops is provided twice, by 'rdvla.stops' (rdvla) and by 'looser:SPEC' (looser)"),
        ("loose", "the entry point 'loose' of rdvla.stops is the rule 'loosest'"),
    ],
)
def test_a_taken_or_another_name_is_refused(installed, name, message):
    (installed / "looser-1.0.dist-info" / "entry_points.txt").write_text(f"[rdvla.stops]\n{name} = looser:SPEC\n")
    done = rdvla(installed, "eval", "--suite", "toy", "--policy", "expert", "--stop", "cosine", "--output", installed)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_rules_that_differ_have_names_that_differ():
    thresholds = [0.9999995, 0.9999999, 0.9999999702, 1e-4, 1.0000001e-4]
    for name in (str, lambda rule: rule.condition):
        assert len({name(StopRule("cosine", threshold)) for threshold in thresholds}) == len(thresholds)
    assert str(StopRule("cosine", 0.9999999702)) == "cosine(0.9999999702, max 32)"
    assert str(StopRule("action_mse", 1e-4, defer=0.0996)) == "action_mse(0.0001, max 32, defer 0.0996)"
