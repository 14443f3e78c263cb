"""What a robot installs: few and light modules, the same as ours, and enough for an episode."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pythons import interpreter, promised
from rdvla import errors
from rdvla.errors import MissingExtraError
from rdvla.execution import Executor, Synchronous
from rdvla.policy import PLAIN, Ask, Policy, PolicyMetadata
from rdvla.server.background import serving
from rdvla.types import ActionChunk, Observation
from serve_fakes import QUICK

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "packages" / "rdvla-client"
HERE = Path(__file__).parent

BARE = """
import importlib, importlib.abc, json, sys

allowed = set(json.loads(sys.argv[1]))

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        root = name.partition(".")[0]
        ours = root == "rdvla" and name not in allowed
        if ours or root in {"pydantic", "yaml", "torch", "PIL", "transformers", "typer", "rich", "prometheus_client"}:
            raise AssertionError(f"a robot does not have {name}")

sys.meta_path.insert(0, Nothing())
for name in sorted(allowed):
    importlib.import_module(name)
"""


def modules() -> list[str]:
    """Return the modules that packages/rdvla-client lists, those of its packages one by one."""
    settings = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = [name.removesuffix(".__init__") for name in settings["py-modules"]]
    for package in settings["packages"]:
        folder = ROOT / "src" / Path(*package.split("."))
        found += [package, *(f"{package}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__")]
    return found


def test_every_module_of_the_package_is_imported_without_the_rest() -> None:
    command = [sys.executable, "-c", BARE, json.dumps(modules())]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_named_as_it_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_is_installed", lambda name: name == "rdvla-client")
    assert str(MissingExtraError("msgpack", "client")).endswith("pip install rdvla-client")
    monkeypatch.setattr(errors, "_is_installed", lambda name: name == "rdvla")
    assert str(MissingExtraError("msgpack", "client")).endswith("pip install 'rdvla[client]'")
    assert str(MissingExtraError("jinja2", "report")).endswith("pip install 'rdvla[report]'")


class Approach(Policy):
    """Goes a tenth of the remaining way at every step of its chunk."""

    metadata = PolicyMetadata("approach", ("primary",), state_dim=1, action_dim=2, chunk_size=8, extra={})

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        left = 1.05 - float(observation.state[0])
        actions = np.tile(np.array([left / 10, (ask.seed or 0) % 97 / 1000], np.float32), (8, 1))
        return ActionChunk(actions, 2)

    def reset(self) -> None:
        pass


@pytest.fixture(scope="module", params=promised())
def robot_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment into which only packages/rdvla-client was installed."""
    base = interpreter(request.param)
    folder = tmp_path_factory.mktemp("robot")
    shutil.copytree(ROOT / "src" / "rdvla", folder / "src" / "rdvla", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE, folder / "packages" / "rdvla-client", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    subprocess.run([base, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", str(folder / "packages" / "rdvla-client")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and ("No matching distribution" in done.stderr or "Connection" in done.stderr):
        pytest.skip(f"no package index: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.slow
def test_the_installed_client_drives_an_episode(robot_python: Path, tmp_path: Path) -> None:
    """The commands are bit for bit those of a simulator that executes the same policy's chunks."""
    with serving(Approach(), QUICK) as server:
        command = [str(robot_python), str(HERE / "robot_episode.py"), server.url]
        done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["commands"] == [action.tolist() for action in _simulated()]
    steps, decisions = len(told["commands"]), -(-len(told["commands"]) // 5)
    assert steps < 100, "the goal was reached"
    assert told["counts"]["executed"] == steps
    assert told["counts"]["beyond_horizon"] == 3 * decisions
    assert told["interventions"] == 0
    assert Path(told["where"]).is_relative_to(robot_python.parents[1])
    assert not {"torch", "transformers", "pydantic", "yaml", "PIL", "typer"} & set(told["loaded"])


@pytest.mark.slow
def test_the_installed_files_are_ours(robot_python: Path) -> None:
    (installed,) = robot_python.parents[1].glob("lib/python*/site-packages/rdvla")
    found = {path.relative_to(installed).as_posix(): path.read_bytes() for path in installed.rglob("*.py")}
    names = (Path("/".join(name.split(".")[1:])) for name in modules())
    source = ROOT / "src" / "rdvla"
    expected = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for name in names
        for path in [source / name / "__init__.py" if (source / name).is_dir() else source / f"{name}.py"]
    }
    assert found == expected


def _simulated() -> list[np.ndarray]:
    executor = Executor(Approach(), Synchronous(5))
    executor.reset(seed=3)
    actions, position = [], 0.0
    while position < 1.0:
        seen = Observation({}, np.array([position], np.float32), "go to one")
        actions.append(executor.act(lambda seen=seen: seen))  # type: ignore[misc]
        position += float(actions[-1][0])
    return actions
