"""The process set-up before the simulator is imported. Nothing here starts it."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rdvla.envs import list_tasks
from rdvla.envs.libero import simulator
from rdvla.envs.libero.suites import LiberoSuite, list_suites, load_init_states, load_task
from rdvla.errors import ConfigError, MissingExtraError, SimulatorError

libero = pytest.importorskip("libero", reason="LIBERO is not installed")


def run(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LIBERO", "XDG", "MUJOCO", "MPL"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env | environment,
    )


def test_the_user_chooses_the_backend(monkeypatch):
    monkeypatch.setattr(simulator, "_loads", lambda _: False)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert simulator.choose_gl_backend() == "osmesa"


@pytest.mark.parametrize(("available", "backend"), [("libEGL", "egl"), ("libOSMesa", "osmesa")])
def test_the_backend_is_the_one_whose_library_loads(monkeypatch, available, backend):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(simulator, "_loads", lambda library: library.startswith(available))
    assert simulator.choose_gl_backend() == backend


def test_without_a_gl_library_the_error_names_the_package(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(simulator, "_loads", lambda _: False)
    with pytest.raises(SimulatorError, match="apt-get install libegl1"):
        simulator.choose_gl_backend()


def test_a_backend_that_cannot_start_is_a_simulator_error(tmp_path):
    result = run(
        """
        from rdvla.envs.libero.env import LiberoEnv
        from rdvla.errors import SimulatorError
        try:
            LiberoEnv("libero_object", 0)
        except SimulatorError as error:
            assert "MUJOCO_GL=egl" in str(error), error
            assert "apt-get install" in str(error), error
        else:
            raise AssertionError("no error")
        """,
        tmp_path,
        MUJOCO_GL="egl",
        MUJOCO_EGL_DEVICE_ID="99",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_a_missing_distribution_names_the_extra(monkeypatch):
    monkeypatch.setattr(simulator, "_package_root", lambda _: None)
    simulator.prepare_paths.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"rdvla\[libero\]"):
            simulator.prepare_paths()
    finally:
        simulator.prepare_paths.cache_clear()


STOCK = """
import os
config = os.path.join(os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero")), "config.yaml")
if not os.path.exists(config):
    input("where are your data? ")
"""


@pytest.fixture
def stock_libero(tmp_path):
    """A distribution that asks on stdin at its first import, as the original LIBERO does."""
    package = tmp_path / "site" / "libero" / "libero"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(STOCK)
    return tmp_path


IMPORT_STOCK = """
from rdvla.envs.libero import simulator
simulator.prepare_paths()
import os, libero.libero
print(os.environ.get("LIBERO_CONFIG_PATH", "unset"))
"""


def test_stock_libero_never_asks_and_its_file_is_in_the_cache(stock_libero):
    home = stock_libero / "home"
    home.mkdir()
    result = run(IMPORT_STOCK, stock_libero, HOME=str(home), PYTHONPATH=str(stock_libero / "site"))
    assert result.returncode == 0, result.stderr
    folder = home / ".cache" / "rdvla" / "libero"
    assert result.stdout.strip() == str(folder)
    assert [path for path in home.rglob("*") if path.is_file()] == [folder / "config.yaml"]
    assert f"bddl_files: {stock_libero}/site/libero/libero/bddl_files" in (folder / "config.yaml").read_text()


def test_an_existing_stock_configuration_is_respected(stock_libero):
    home = stock_libero / "home"
    (home / ".libero").mkdir(parents=True)
    (home / ".libero" / "config.yaml").write_text("assets: mine\n")
    result = run(IMPORT_STOCK, stock_libero, HOME=str(home), PYTHONPATH=str(stock_libero / "site"))
    assert (result.returncode, result.stdout.strip()) == (0, "unset"), result.stderr
    assert not (home / ".cache").exists()


def test_an_unwritable_cache_is_a_clear_error(stock_libero):
    blocker = stock_libero / "file"
    blocker.touch()
    result = run(
        """
        from rdvla.envs.libero import simulator
        from rdvla.errors import SimulatorError
        try:
            simulator.prepare_paths()
        except SimulatorError as error:
            assert "XDG_CACHE_HOME" in str(error)
        else:
            raise AssertionError("no error")
        """,
        stock_libero,
        HOME=str(stock_libero),
        XDG_CACHE_HOME=str(blocker),
        PYTHONPATH=str(stock_libero / "site"),
    )
    assert result.returncode == 0, result.stderr


def test_suites_and_tasks_without_a_simulator(tmp_path):
    result = run(
        """
        import sys
        from rdvla.envs import list_tasks
        from rdvla.envs.libero.suites import list_suites
        assert len(list_tasks("libero_object")) == 10
        assert "libero_spatial_swap" in list_suites()
        assert not {"mujoco", "robosuite", "torch"} & set(sys.modules)
        """,
        tmp_path,
        HOME=str(tmp_path),
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_base_suites_come_first_and_have_the_published_limits():
    assert set(list_suites()[:5]) == {"libero_10", "libero_90", "libero_goal", "libero_object", "libero_spatial"}
    limits = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
    for suite, steps in limits.items():
        assert {task.max_steps for task in list_tasks(suite)} == {steps}
        assert len(list_tasks(suite)) == (90 if suite == "libero_90" else 10)
    assert list_tasks("libero_goal_swap")[0].max_steps == 300


def test_instructions():
    task = list_tasks("libero_spatial")[4]
    assert task.task_id == 4
    assert task.instruction == (
        "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"
    )
    # A variant that rephrases the task keeps the base suite's file name; its definition file has the words.
    assert list_tasks("libero_object_lan")[0].instruction == "grab alphabet soup and put it into basket"


@pytest.mark.parametrize(
    ("suite", "task_id", "message"),
    [
        ("libero_objects", 0, "Did you mean 'libero_object'"),
        ("libero_object", 10, r"tasks 0\.\.9"),
        ("libero_object", -1, r"tasks 0\.\.9"),
        ("libero_object", "3", "task_id = '3'"),
    ],
)
def test_unknown_suite_or_task(suite, task_id, message):
    with pytest.raises(ConfigError, match=message):
        load_task(suite, task_id)


class FakeBenchmark:
    def __init__(self, path: Path) -> None:
        self.path = path

    def get_task_init_states(self, index: int) -> np.ndarray:
        return torch.load(self.path)  # as the original LIBERO does


def test_init_states_in_the_original_format(tmp_path):
    states = np.arange(6.0).reshape(2, 3)
    torch.save(states, tmp_path / "states")
    task = replace(load_task("libero_object", 0), benchmark=FakeBenchmark(tmp_path / "states"))
    assert np.array_equal(load_init_states(task), states)


@pytest.mark.parametrize("content", [b"", b"not a state file", None])
def test_unreadable_init_states_are_a_clear_error(tmp_path, content):
    path = tmp_path / "states"
    if content is None:
        torch.save(Path("an object that is not an array"), path)
    else:
        path.write_bytes(content)
    task = replace(load_task("libero_object", 0), benchmark=FakeBenchmark(path))
    with pytest.raises(ConfigError, match="'libero_object' task 0 has no readable initial states"):
        load_init_states(task)


def test_of_libero_90_the_tasks_that_the_expert_solves_are_collected():
    chosen = LiberoSuite("libero_90").demonstrated
    assert len(chosen) == len(set(chosen)) == 82
    assert not {6, 88} & set(chosen)
    assert list(LiberoSuite("libero_10").demonstrated) == list(range(10))
