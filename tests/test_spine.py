"""The whole way through the command line in the real simulator: collect, train, continue, evaluate, report."""

import json
import os
import subprocess
import sys

import pytest
import yaml

pytestmark = [pytest.mark.sim, pytest.mark.slow]
TASK = ["--suite", "libero_object", "--task-ids", "0"]


def rdvla(*arguments, cwd):
    command = [sys.executable, "-m", "rdvla.cli.main", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def episodes(folder):
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_from_the_expert_to_the_report(tmp_path):
    rdvla("collect", *TASK, "--episodes", 2, "--workers", 2, "--render-every", 8, "--output", "demos", cwd=tmp_path)
    summary = json.loads((tmp_path / "demos" / "collect.json").read_text())
    assert [task["episodes"] for task in summary["tasks"]] == [2]

    settings = {
        "output": "run",
        "data": {"root": "demos", "validation_fraction": 0.5},
        "batch_size": 4,
        "max_steps": 2,
        "log_freq": 1,
        "validation_samples": 4,
        "num_threads": 1,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert "validation_l1/depth_32" in rdvla("train", "--config", "tiny.yaml", cwd=tmp_path)
    continued = rdvla("train", "--config", "tiny.yaml", "--max_steps=3", cwd=tmp_path)
    assert "3/3" in continued
    assert "1/3" not in continued, "it started anew"

    policy = ["--checkpoint", "run/policy", "--depth", 1, "--stop", "action_mse", "--max-depth", 3, "--horizon", 8]
    table = rdvla("eval", *policy, *TASK, "--episodes", 1, "--workers", 2, "--output", "trained", cwd=tmp_path)
    assert "fixed(1)" in table
    trained = episodes(tmp_path / "trained")
    assert [record["kind"] for record in trained] == ["episode", "episode"]
    assert all(record["versions"]["mujoco"] for record in trained)

    rdvla("eval", "--policy", "expert", *TASK, "--episodes", 1, "--video", 1, "--output", "expert", cwd=tmp_path)
    assert [record["success"] for record in episodes(tmp_path / "expert")] == [True]

    rdvla("report", "trained", "expert", "--output", "report.html", cwd=tmp_path)
    rdvla("results", "iterations", "trained", "--output", "results.md", cwd=tmp_path)
    assert "| solved under depth 1 | solved under the rule itself |" in (tmp_path / "results.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "data:video/mp4;base64," in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
