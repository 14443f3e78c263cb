"""Suites by name: ours, and those that another distribution brings."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from chain_fakes import ROBOT, ChainSuite
from rdvla import plugins
from rdvla.embodiment import CALVIN, LIBERO
from rdvla.envs import find_suite, list_tasks, registry
from rdvla.envs.fit import differences, require_fit
from rdvla.envs.toy import ToySuite
from rdvla.errors import ConfigError, MissingExtraError
from rdvla.eval.records import read_records
from rdvla.policy import PolicyMetadata

OUTSIDE = """
    import numpy as np
    from rdvla.envs.base import TaskSpec
    from rdvla.envs.toy import ToyEnv, ToySuite

    class Line(ToySuite):
        expert = "outside:make_expert"
        protocols = ("strict", "easy")

        def tasks(self):
            limit = 1 if self.protocol == "strict" else 60
            return [TaskSpec("line", 0, "go", "go there", limit)]

        def make_env(self, task_id, *, camera_size=None):
            env = ToyEnv(task_id)
            env._task = self.tasks()[0]
            return env

    def make_expert(task):
        from rdvla.experts.toy import ToyExpert
        return ToyExpert()

    def suites():
        return {"line": Line("line")}
"""


@pytest.fixture
def outside(tmp_path):
    """A distribution on the path, with a module and an entry point."""
    (tmp_path / "outside.py").write_text(textwrap.dedent(OUTSIDE))
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rdvla.envs]\nline = outside:suites\n")
    return tmp_path


@pytest.mark.parametrize(("protocol", "rate"), [("strict", "0.0%"), ("easy", "100.0%")])
def test_a_suite_from_outside_is_evaluated_by_the_command_line(outside, protocol, rate):
    command = [sys.executable, "-m", "rdvla", "eval", "--suite", "line", "--policy", "expert", "--seeds", "3-4"]
    command += ["--protocol", protocol, "--output", str(outside / "out")]
    path = os.pathsep.join([str(outside), *filter(None, sys.path)])
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert rate in run.stdout
    records = read_records(outside / "out")
    assert [(r.suite, r.placement_seed, r.instruction) for r in records] == [("line", s, "go there") for s in (3, 4)]


def test_the_suite_that_was_meant_is_named_in_any_case():
    for name, meant in (("TOY", "toy"), ("toi", "toy")):
        with pytest.raises(ConfigError, match=f"unknown suite '{name}'. Did you mean '{meant}'"):
            find_suite(name)


def test_a_libero_suite_in_capitals():
    pytest.importorskip("libero", reason="the known suites are those of the installed LIBERO")
    with pytest.raises(ConfigError, match=r"'LIBERO_OBJECT'\. Did you mean 'libero_object'"):
        find_suite("LIBERO_OBJECT")


def missing():
    raise MissingExtraError("a simulator", "sim")


@pytest.fixture
def families(monkeypatch):
    """The toy, and a family whose extra is missing."""
    here = {"toy": "rdvla.envs.toy:suites", "heavy": f"{__name__}:missing"}
    monkeypatch.setattr(registry, "FAMILIES", here)


@pytest.mark.usefixtures("families")
def test_only_suites_of_a_family_without_its_extra_ask_for_it():
    assert list_tasks("toy")
    with pytest.raises(MissingExtraError, match=r"'rdvla\[sim\]'"):
        find_suite("heavy_one")
    with pytest.raises(ConfigError, match="unknown suite 'nothing'"):
        find_suite("nothing")


def test_a_suite_of_a_package_may_begin_as_a_family_without_its_extra(monkeypatch):
    here = {"heavy": f"{__name__}:missing", "heavy_plus": f"{__name__}:heavy_plus"}
    monkeypatch.setattr(registry, "FAMILIES", here)
    assert find_suite("heavy_plus_one").name == "heavy_plus_one"
    with pytest.raises(MissingExtraError):
        find_suite("heavy_plus_two")


def heavy_plus():
    return {"heavy_plus_one": ChainSuite("heavy_plus_one", "short")}


def test_a_family_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", {"toy": "no_such_module:suites"})
    with pytest.raises(ConfigError, match=r"'no_such_module:suites' .* cannot be imported .*mend or uninstall"):
        find_suite("toy")


def test_protocols(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", {"chain": f"{__name__}:chains"})
    assert find_suite("chain").protocol == "short"
    assert find_suite("chain", "long").protocol == "long"
    with pytest.raises(ConfigError, match=r"no protocol 'lang'\. Did you mean 'long'"):
        find_suite("chain", "lang")


def test_a_suite_with_one_set_of_rules_takes_no_protocol():
    with pytest.raises(ConfigError, match=r"suite 'toy' has no protocol 'long'\. It has one set of rules"):
        find_suite("toy", "long")


def chains():
    return {"chain": ChainSuite("chain", "short")}


def test_a_family_of_a_taken_name_is_refused(monkeypatch):
    foreign = EntryPoint("toy", f"{__name__}:chains", registry.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [foreign])
    with pytest.raises(
        ConfigError, match=r"'toy' of rdvla.envs is provided twice, by 'rdvla.envs.toy:suites' .*chains"
    ):
        find_suite("toy")


def test_a_suite_of_a_taken_name_is_refused(monkeypatch):
    families = {"chain": f"{__name__}:chains", "other": f"{__name__}:chains"}
    monkeypatch.setattr(registry, "FAMILIES", families)
    with pytest.raises(ConfigError, match=r"'chain' of rdvla\.envs is provided twice"):
        find_suite("nothing")


def test_a_family_is_a_function(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", {"toy": "rdvla.envs.toy:SUITE"})
    with pytest.raises(ConfigError, match="must be a function that returns suites by name, found 'toy'"):
        find_suite("toy")


POLICY = PolicyMetadata("tiny", ("primary", "wrist"), 8, 7, 8, {"gripper": "open_is_negative"})


def test_a_policy_that_fits():
    require_fit(POLICY, ToySuite("toy"))
    require_fit(replace(POLICY, extra={"gripper": "none"}), ToySuite("toy"))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"cameras": ("primary", "left")}, "there is no camera 'left'"),
        ({"state_dim": 15}, "the state has 8 numbers there, not 15"),
        ({"action_dim": 6}, "the action has 7 numbers there, not 6"),
        ({"extra": {"gripper": CALVIN.gripper}}, "the gripper is open_is_negative there, not open_is_positive"),
    ],
)
def test_a_policy_that_does_not_fit_is_told_both_sides(changes, wrong):
    policy = replace(POLICY, **changes)
    sides = (
        rf"takes cameras {', '.join(policy.cameras)}; state {policy.state_dim}.* primary 64x64, wrist 64x64; state 8"
    )
    with pytest.raises(ConfigError, match=f"'tiny' does not fit suite 'toy'.*{wrong}.*{sides}"):
        require_fit(policy, ToySuite("toy"))


def test_sizes_follow_from_names():
    assert (LIBERO.state_dim, LIBERO.action_dim, ROBOT.state_dim) == (8, 7, 1)


def test_commands_of_any_size_do_not_fit_a_gripper_of_two_values():
    policy = replace(POLICY, extra={"gripper": "none"})
    assert differences(policy, LIBERO, LIBERO.cameras) == []
    assert differences(policy, CALVIN, CALVIN.cameras) == ["the gripper is open_is_positive there, not none"]
