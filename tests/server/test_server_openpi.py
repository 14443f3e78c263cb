"""The stock openpi client from PyPI, in an environment of its own, against our server."""

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdvla.envs import InitState, make_env
from rdvla.policy import Ask
from rdvla.server.background import serving
from rdvla.types import Observation
from serve_fakes import QUICK, FakePolicy, expected_actions, observation

EPISODE = Path(__file__).with_name("openpi_episode.py")


class StockClient:
    """The other process: answers observations with the broker's next action."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.hello = self._read()

    def step(self, seen: Observation, **options: Any) -> dict[str, Any]:
        names = {"primary": "observation/image", "wrist": "observation/wrist_image"}
        images = {
            names[camera]: {"data": base64.b64encode(image.tobytes()).decode(), "shape": image.shape}
            for camera, image in seen.images.items()
        }
        request = {"images": images, "state": seen.state.tolist(), "prompt": seen.instruction, "options": options}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            pytest.fail(f"the stock client ended: {self._process.stderr.read()[-2000:]}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


@contextmanager
def stock_client(python: Path, url: str, *, horizon: int = 5, size: int = 0) -> Iterator[StockClient]:
    command = [str(python), str(EPISODE), url, str(horizon), str(size)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield StockClient(process)
    finally:
        process.communicate()


def test_the_broker_gets_our_actions_one_by_one(openpi_python: Path) -> None:
    with serving(FakePolicy(), QUICK) as server, stock_client(openpi_python, server.url) as client:
        assert client.hello["numpy"].startswith("1.")
        assert client.hello["metadata"]["cameras"] == ["primary", "wrist"]
        first, second = observation(1), observation(2)
        chunk = expected_actions(first, 4, 9)
        for step in range(5):
            result = client.step(first, depth=4, seed=9)
            np.testing.assert_allclose(result["action"], chunk[step], rtol=1e-6)
            assert result["num_recurrences"] == 4
            assert result["policy_timing"]["infer_ms"] == 1.5
        np.testing.assert_allclose(client.step(second)["action"], expected_actions(second, 12, None)[0], rtol=1e-6)


def test_an_error_reaches_the_stock_client_as_text(openpi_python: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from openpi_client.websocket_client_policy import WebsocketClientPolicy\n"
        "policy = WebsocketClientPolicy(sys.argv[1])\n"
        "try:\n    policy.infer({'observation/state': np.zeros(8), 'prompt': 'go'})\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    with serving(FakePolicy(), QUICK) as server:
        done = subprocess.run([openpi_python, "-c", script, server.url], capture_output=True, text=True, check=True)
    assert "Error in inference server" in done.stdout
    assert "bad_request: image 'observation/image' is missing" in done.stdout


def test_the_stock_client_sends_its_key(openpi_python: Path) -> None:
    script = (
        "import sys\n"
        "from openpi_client.websocket_client_policy import WebsocketClientPolicy\n"
        "print(WebsocketClientPolicy(sys.argv[1], api_key=sys.argv[2]).get_server_metadata()['name'])\n"
    )
    with serving(FakePolicy(), QUICK, api_key="correct horse battery") as server:
        good, bad = (
            subprocess.run([openpi_python, "-c", script, server.url, key], capture_output=True, text=True)
            for key in ("correct horse battery", "wrong horse battery")
        )
    assert good.stdout == "fake\n"
    assert bad.returncode != 0
    assert "HTTP 401" in bad.stderr


def test_a_whole_toy_episode_through_the_stock_broker(openpi_python: Path) -> None:
    """The same actions as asking the policy directly, 60 steps, a decision every fifth."""
    policy = FakePolicy()
    env, twin = make_env("toy", 0), make_env("toy", 0)
    env.reset(InitState(0))
    twin.reset(InitState(0))
    with serving(policy, QUICK) as server, stock_client(openpi_python, server.url) as client:
        for step in range(60):
            action = np.asarray(client.step(env.observe(), seed=step // 5)["action"], np.float32)
            if step % 5 == 0:
                chunk = policy.infer(twin.observe(), Ask(seed=step // 5)).actions
            np.testing.assert_allclose(action, chunk[step % 5], rtol=1e-6)
            assert env.step(action) == twin.step(action)
    decisions = len(policy.seen) - 12 - 1  # ours, and the warm-up
    assert decisions == 12
