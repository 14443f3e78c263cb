"""Runs docs/your_robot.md: records, inspects, trains, serves and asks, for a bimanual arm of 14 joints."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from patience import PATIENCE_S
from rdvla.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "your_robot.md"
SIZE = (48, 64)
SMALL = (
    "--max_steps=2",
    "--batch_size=4",
    "--num_threads=1",
    "--save_freq=2",
    "--validate_freq=2",
    "--validation_samples=4",
    "--validation_depths=[1,2]",
    "--data.validation_fraction=0.34",
    "--model.head.mean_recurrence=2",
    "--model.head.backprop_depth=1",
)


def blocks(language):
    """The page's fenced blocks of a language ("" for commands)."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in fences if name == language]


def log(seed, length=30):
    rng = np.random.default_rng(seed)
    start = rng.uniform(-1, 1, 14)
    path = start + np.linspace(0, 1, length + 1)[:, None] * rng.uniform(-1, 1, 14)
    images = [np.full((*SIZE, 3), 60 + 3 * step, np.uint8) for step in range(length)]
    return SimpleNamespace(
        states=path[:-1].astype(np.float32), actions=path[1:].astype(np.float32), top=images, wrist=images[::-1]
    )


class Robot:
    """Counts what it is told to do."""

    def __init__(self):
        self.moves = []

    def done(self):
        return len(self.moves) >= 20

    def image(self, camera):
        return np.full((480, 640, 3), 100, np.uint8)

    def joint_positions(self):
        return np.zeros(14, np.float32)

    def move_to(self, action):
        self.moves.append(action)


def invoke(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.slow
def test_the_page_from_recording_to_serving(workplace):
    inspect, train, serve = [text.split()[1:] for text in blocks("")]
    record, ask = blocks("python")
    (config,) = blocks("yaml")

    exec(record.replace("480, 640", "{}, {}".format(*SIZE)), {"logs": [log(seed) for seed in range(3)]})
    assert "3 episodes, 90 frames at 50 per second" in invoke(inspect)
    assert "left_gripper" in (workplace / "towel.html").read_text()

    (workplace / "fold_towel.yaml").write_text(config)
    invoke([*train, *SMALL])

    serve[serve.index("8000")] = "0"
    command = [sys.executable, "-m", "rdvla.cli.main", *serve, "--depth", "2"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert line.startswith("ready: ws://"), line
        robot = Robot()
        seen = {"robot": robot}
        exec(ask.replace("ws://127.0.0.1:8000", line.split()[1]), seen)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=PATIENCE_S)
        server.stdout.close()
    assert seen["chunk"].actions.shape == (25, 14)
    assert seen["chunk"].actions.dtype == np.float32
    assert seen["chunk"].num_recurrences == 2
    assert len(robot.moves) == 20
    assert all(np.isfinite(action).all() for action in robot.moves)
