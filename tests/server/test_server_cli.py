"""`rdvla serve` and `rdvla play` as commands: what they refuse, and a real process that stops at a signal."""

import logging
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from patience import PATIENCE_S, eventually
from rdvla import __version__
from rdvla.cli.options import StopOptions
from rdvla.cli.play import play_command
from rdvla.cli.serve import limit_threads, serve_command
from rdvla.errors import ConfigError, ServeError
from rdvla.policies.sources import fingerprint
from rdvla.policy import PolicyMetadata
from rdvla.robot.client import RemotePolicy
from rdvla.server.server import with_fingerprint
from rdvla.stops import StopRule
from rdvla.wire.adapters import to_message
from rdvla.wire.codec import decode, encode
from serve_fakes import make_certificate, observation, open_socket


def test_the_default_rule() -> None:
    assert StopOptions().rule() is None
    assert StopOptions("3").rule() == StopRule.fixed(3)
    assert StopOptions(stop="latent", delta="0.1").rule() == StopRule("latent", 0.1, max_depth=32)
    assert StopOptions(stop="cosine", max_depth=8, min_depth=2).rule() == StopRule("cosine", min_depth=2, max_depth=8)
    for options, match in [
        (StopOptions("3", "latent"), "one rule is needed"),
        (StopOptions(delta="0.1"), "belongs to an adaptive rule"),
        (StopOptions("0"), "the smallest depth is 1"),
        (StopOptions("3,4"), "one rule is needed"),
        (StopOptions(stop="latent", delta="0.1,0.2"), "one rule is needed"),
        (StopOptions(stop="latent", delta="much"), "'much' is not a number"),
        (StopOptions(stop="latnt"), "Did you mean 'latent'"),
    ]:
        with pytest.raises(ConfigError, match=match):
            options.rule()


def test_a_server_says_which_rule_it_serves() -> None:
    local = PolicyMetadata("small", ("primary",), 8, 7, 8, {"default_stop": "fixed(12)"})
    latent, patient = (with_fingerprint(local, "", StopRule("latent", min_depth=depth)) for depth in (1, 2))
    assert latent.fingerprint != patient.fingerprint
    assert patient.extra["default_stop"] == "latent(0.03, max 32, min 2)"
    assert with_fingerprint(local, "", None).extra["default_stop"] == "fixed(12)"


def test_wrong_settings_are_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDVLA_API_KEY", raising=False)
    for options, match in [
        ({"host": "0.0.0.0"}, "API key is needed"),
        ({"host": "0.0.0.0", "web": True}, "loopback only"),
        ({"port": 70000}, "'port' = 70000"),
        ({"instruction": " "}, "instruction is blank"),
        ({"tls_key": tmp_path / "key.pem"}, "go together"),
        ({"config": tmp_path / "absent.yaml"}, "no configuration file"),
        ({"depth": "3", "stop": "latent"}, "one rule is needed"),
        ({"threads": 0}, "--threads must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=match):
            serve_command(str(tmp_path / "no checkpoint"), **options)
    (tmp_path / "serve.yaml").write_text("max_bach: 3\n")
    with pytest.raises(ConfigError, match="Did you mean 'max_batch'"):
        serve_command("x", config=tmp_path / "serve.yaml")
    for options, match in [
        ({"policy": "expert", "depth": "3"}, "does not iterate"),
        ({"policy": "expert", "start": "half"}, "does not iterate"),
        ({"policy": "expert", "horizon": "5"}, "decides at every step"),
        ({"show_every": -1}, "show-every"),
        ({"init_states": "a"}, "init-states"),
        ({"init_states": "0", "seeds": "3"}, "drop --init-states, --chains or --seeds"),
        ({"init_states": "49-50"}, "names 50, but toy task 0"),
        ({"task_id": 6}, "has no task 6"),
        ({"rate": 0.0}, "--rate"),
        ({"episodes": 0}, "--episodes"),
        ({}, "give either --checkpoint"),
    ]:
        with pytest.raises(ConfigError, match=match):
            play_command("toy", **options)


@pytest.mark.parametrize("starts", [{"init_states": "0,1"}, {"seeds": "5000"}])
def test_the_expert_is_played(
    starts: dict[str, str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "rdvla.robot.loop")  # what the command changes is undone afterwards
    play_command("toy", policy="expert", port=0, **starts, episodes=1, rate=1000.0)
    told = capsys.readouterr().out
    assert "live page: http://127.0.0.1:" in told
    assert "1 of 1 episodes solved" in told


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
import time
import types
from pathlib import Path
sys.path.insert(0, {tests!r})
from serve_fakes import BatchingPolicy
class Held(BatchingPolicy):
    def _decide(self):
        while Path({hold!r}).exists():
            time.sleep(0.01)
policy = Held()
sys.modules["rdvla.policies.network"] = types.SimpleNamespace(load_policy=lambda *args, **options: policy)
import typer
from rdvla.cli.serve import serve_command
typer.run(serve_command)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"format": "rdvla"}')
    return folder


@contextmanager
def served(*arguments: object, hold: Path = Path("never")) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `rdvla serve` with a fake policy in a process of its own; yield it and the address it is ready at.

    The policy decides nothing while there is a file `hold`.
    """
    code = SERVE.format(tests=str(Path(__file__).parents[1]), hold=str(hold))
    command = [sys.executable, "-c", code, *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), line
        yield process, line.split()[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_served_process_becomes_ready_and_stops_at_a_signal(sent: signal.Signals, checkpoint: Path) -> None:
    with served("--checkpoint", checkpoint, "--web") as (process, url):
        assert url.startswith("ws://127.0.0.1:")
        address = url.replace("ws", "http", 1)
        with urllib.request.urlopen(address + "/healthz", timeout=PATIENCE_S) as answer:
            assert answer.read() == b"OK\n"
        assert process.stdout is not None
        assert process.stdout.readline() == f"live page: {address}\n"
        assert process.stdout.readline() == "stops at: own rule, unless a request says\n"
        process.send_signal(sent)
        rest, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        assert rest == ""


def test_a_served_process_says_what_it_serves(checkpoint: Path) -> None:
    with (
        served("--checkpoint", checkpoint, "--depth", 3, "--precision", "int8") as (_, url),
        RemotePolicy(url) as policy,
    ):
        rule = StopRule.fixed(3)
        expected = f"{fingerprint(checkpoint)} (precision=int8), {rule}, rdvla {__version__}"
        assert policy.metadata.fingerprint == expected
        assert policy.infer(observation()).num_recurrences == 3


def test_certificate_and_key_of_the_command_line_are_used(checkpoint: Path, tmp_path: Path) -> None:
    certificate, private = make_certificate(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("a key of the right length\n")
    options = ["--tls-cert", certificate, "--tls-key", private, "--api-key-file", secret]
    with served("--checkpoint", checkpoint, *options) as (_, url):
        assert url.startswith("wss://127.0.0.1:")
        with RemotePolicy(url, api_key="a key of the right length", tls_ca=certificate) as policy:
            assert policy.infer(observation()).num_recurrences == 12
        with pytest.raises(ServeError, match="HTTP 401"):
            RemotePolicy(url, api_key="a key of another kind", tls_ca=certificate)
        with pytest.raises(ServeError, match="not trusted"):
            RemotePolicy(url, api_key="a key of the right length")


@pytest.mark.parametrize("max_batch", [1, 2])
def test_no_batch_is_larger_than_the_command_line_says(max_batch: int, checkpoint: Path, tmp_path: Path) -> None:
    """At least three requests wait while the first one or two are decided."""
    hold = tmp_path / "hold"

    def waiting() -> float:
        with urllib.request.urlopen(url.replace("ws", "http", 1) + "/metrics", timeout=PATIENCE_S) as answer:
            return float(re.search(r"^rdvla_queue_length (\S+)$", answer.read().decode(), re.MULTILINE)[1])  # type: ignore[index]

    with served("--checkpoint", checkpoint, "--max-batch", max_batch, hold=hold) as (_, url):
        connections = [open_socket(url) for _ in range(5)]
        hold.touch()
        for connection in connections:
            connection.recv(timeout=PATIENCE_S)
            connection.send(encode(to_message(observation())))
        eventually(lambda: waiting() >= 3)
        hold.unlink()
        replies = [connection.recv(timeout=PATIENCE_S) for connection in connections]
        sizes = [decode(reply)["server_timing"]["batch_size"] for reply in replies if isinstance(reply, bytes)]
        assert len(sizes) == 5
        assert max(sizes) == max_batch
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("package", ["websockets", "prometheus_client"])
def test_without_the_extra_the_command_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from rdvla.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "--checkpoint", "rdvla_tiny_libero"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {package} is not installed. Install it with: pip install 'rdvla[serve]'\n"
