"""`rdvla serve` and `rdvla play` as commands: what they refuse, and a real process that stops at a signal."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from rdvla.cli.options import StopOptions
from rdvla.cli.play import play_command
from rdvla.cli.serve import limit_threads, serve_command
from rdvla.errors import ConfigError
from rdvla.stops import StopRule


def test_the_default_rule() -> None:
    assert StopOptions().rule() is None
    assert StopOptions("3").rule() == StopRule.fixed(3)
    assert StopOptions(stop="latent", delta="0.1").rule() == StopRule("latent", 0.1, max_depth=32)
    assert StopOptions(stop="cosine", max_depth=8, min_depth=2).rule() == StopRule("cosine", min_depth=2, max_depth=8)
    for options, match in [
        (StopOptions("3", "latent"), "give one of the two"),
        (StopOptions(delta="0.1"), "belongs to an adaptive rule"),
        (StopOptions("0"), "the smallest depth is 1"),
        (StopOptions("3,4"), "one rule is needed"),
        (StopOptions(stop="latent", delta="0.1,0.2"), "one rule is needed"),
        (StopOptions(stop="latent", delta="much"), "'much' is not a number"),
        (StopOptions(stop="latnt"), "Did you mean 'latent'"),
    ]:
        with pytest.raises(ConfigError, match=match):
            options.rule()


def test_wrong_settings_are_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDVLA_API_KEY", raising=False)
    for options, match in [
        ({"host": "0.0.0.0"}, "API key is needed"),
        ({"host": "0.0.0.0", "web": True}, "loopback only"),
        ({"port": 70000}, "'port' = 70000"),
        ({"tls_key": tmp_path / "key.pem"}, "go together"),
        ({"config": tmp_path / "absent.yaml"}, "no configuration file"),
        ({"depth": "3", "stop": "latent"}, "give one of the two"),
        ({"threads": 0}, "--threads must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=match):
            serve_command(str(tmp_path / "no checkpoint"), **options)
    (tmp_path / "serve.yaml").write_text("max_bach: 3\n")
    with pytest.raises(ConfigError, match="Did you mean 'max_batch'"):
        serve_command("x", config=tmp_path / "serve.yaml")
    for options, match in [
        ({"policy": "expert"}, "neither iterates nor looks"),
        ({"show_every": -1}, "show-every"),
        ({"init_states": "a"}, "init-states"),
        ({"init_states": "49-50"}, "names 50, but toy task 0"),
        ({"task_id": 6}, "has no task 6"),
        ({"rate": 0.0}, "--rate"),
        ({"episodes": 0}, "--episodes"),
        ({}, "give either --checkpoint"),
    ]:
        with pytest.raises(ConfigError, match=match):
            play_command("toy", **options)


def test_one_core_is_left_to_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        torch.set_num_threads(4)
        limit_threads(None)
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        limit_threads(None)
        assert torch.get_num_threads() == 1
        limit_threads(2)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        limit_threads(None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


SERVE = """
import sys
import types
sys.path.insert(0, {folder!r})
from serve_fakes import FakePolicy
sys.modules["rdvla.policies.network"] = types.SimpleNamespace(load_policy=lambda *args, **options: FakePolicy())
import typer
from rdvla.cli.serve import serve_command
typer.run(serve_command)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_served_process_becomes_ready_and_stops_at_a_signal(sent: signal.Signals) -> None:
    code = SERVE.format(folder=str(Path(__file__).parents[1]))
    command = [sys.executable, "-c", code, "--checkpoint", "fake", "--port", "0", "--web"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: ws://127.0.0.1:"), line
        address = line.split()[1].replace("ws", "http", 1)
        with urllib.request.urlopen(address + "/healthz", timeout=60) as answer:
            assert answer.read() == b"OK\n"
        assert process.stdout.readline() == f"live page: {address}\n"
        process.send_signal(sent)
        rest, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert rest == ""
    finally:
        process.kill()
        process.communicate()
