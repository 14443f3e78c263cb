"""vla-eval's own runner, connection and benchmarks drive our policy; nothing of vla-eval is replaced."""

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("vla_eval")

from vla_eval import api
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.model_servers.base import SessionContext
from vla_eval.specs import (
    GRIPPER_CLOSE_NEG,
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    RAW,
    ROTATION_AA,
    check_specs,
)

import checkpoint_fakes as fakes
from rdvla.checkpoints import save_native
from rdvla.data.stats import NormStats
from rdvla.envs import InitState
from rdvla.errors import CarryError, ConfigError, ObservationError
from rdvla.eval.protocol import episode_seed
from rdvla.hub import SHIPPED
from rdvla.integrations import vla_eval
from rdvla.integrations.vla_eval import RDVLAModelServer
from rdvla.policies.network import load_policy
from rdvla.policy import Ask, decision_seed
from rdvla.stops import StopRule
from rdvla.types import Observation

PATIENCE_S = 3600.0
"""Where vla-eval would give up after half a minute, which a busy machine may need."""
CONFIGS = Path(__file__).parents[2] / "configs" / "vla_eval"


class Counting(StepBenchmark):
    """A benchmark in LIBERO's dialect whose picture says which step it is; it ends after seven."""

    received: list = []  # noqa: RUF012 - one run at a time

    def get_tasks(self):
        return [{"name": "pick up the milk", "suite": "counting", "task_id": 0}]

    def reset(self, task):
        self.step_number = 0
        type(self).received.clear()
        return 0

    def step(self, action):
        type(self).received.append(np.asarray(action["actions"]))
        self.step_number += 1
        return StepResult(self.step_number, 0.0, self.step_number == 7, {})

    def make_obs(self, raw_obs, task):
        return {**observation(raw_obs), "task_description": task["name"]}

    def check_done(self, step_result):
        return step_result.done

    def get_step_result(self, step_result):
        return {"success": step_result.done}

    def get_metadata(self):
        return {"max_steps": 20, "max_episodes_per_task": 50}

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self):
        return {"agentview": IMAGE_RGB, "wrist": IMAGE_RGB, "language": LANGUAGE}


def observation(step):
    picture = np.full((64, 64, 3), 20 * step, dtype=np.uint8)
    state = np.full(8, step / 100, dtype=np.float32)
    return {"images": {"agentview": picture, "wrist": picture}, "states": state, "task_description": "pick up the milk"}


@pytest.fixture(scope="module")
def server():
    torch.set_num_threads(1)
    return RDVLAModelServer(SHIPPED, stop="action_mse", threshold=1e-4, horizon="4")


def config(benchmark, output, **params):
    entry = {"benchmark": benchmark, "name": "test", "episodes_per_task": 1, "params": params}
    return {"output_dir": str(output), "benchmarks": [entry]}


def decide(step, decision, stop, seed):
    seen = observation(step)
    images = {"primary": seen["images"]["agentview"], "wrist": seen["images"]["wrist"]}
    looked = Observation(images, seen["states"], seen["task_description"])
    return load_policy(SHIPPED).infer(looked, Ask(stop, decision_seed(seed, decision)))


def test_an_episode_executes_the_chunks_of_load_policy(server, tmp_path):
    result = api.evaluate(server, config(f"{__name__}:Counting", tmp_path))
    assert result[0]["mean_success"] == 1.0
    seed = episode_seed(7, "counting", 0, InitState(0))
    stop = StopRule("action_mse", threshold=1e-4)
    first, second = decide(0, 0, stop, seed), decide(4, 1, stop, seed)
    expected = np.concatenate([first.actions[:4], second.actions[:3]])
    np.testing.assert_allclose(np.stack(Counting.received), expected, atol=1e-6)
    (database,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes()[:6] == b"SQLite"]
    with sqlite3.connect(database) as connection:
        rows = recorded_rows(connection)
    assert [row["num_recurrences"] for row in rows if "num_recurrences" in row] == [
        first.num_recurrences,
        second.num_recurrences,
    ]


def recorded_rows(connection):
    """Return every JSON object with a step's fields, whatever vla-eval calls its tables."""
    found = []
    for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
        for row in connection.execute(f'select * from "{table}"'):
            for cell in row:
                if isinstance(cell, str) and cell.startswith("{") and "num_recurrences" in cell:
                    found.append(json.loads(cell))
    return found


def test_specs_agree_with_libero(server):
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark

    libero = LIBEROBenchmark(send_wrist_image=True, send_state=True)
    wanted = {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True}
    assert server.get_observation_params() == wanted
    LIBEROBenchmark(**wanted)
    assert not check_specs(
        server.get_action_spec(),
        libero.get_action_spec(),
        server.get_observation_spec(),
        libero.get_observation_spec(),
    )


def test_sessions_decided_together_are_decided_alike(server):
    contexts = [SessionContext(f"s{i}", f"e{i}") for i in range(2)]
    for context in contexts:
        server._sessions[context.session_id] = vla_eval._Session(5, vla_eval.make_horizon("4"))
    together = server.predict_batch([observation(1), observation(6)], contexts)
    for context in contexts:
        server._sessions[context.session_id] = vla_eval._Session(5, vla_eval.make_horizon("4"))
    alone = [server.predict(observation(step), context) for step, context in zip((1, 6), contexts, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert one["actions"].shape == (4, 7)
        np.testing.assert_allclose(one["actions"], other["actions"], atol=1e-5)


@pytest.fixture
def warm(server, monkeypatch):
    """The server with warm starts, its asks, and a session in an episode that has begun."""
    asks, infer = [], server._policy.infer_batch
    monkeypatch.setattr(server, "_ask", Ask(StopRule.fixed(4), warm_start="half"))
    monkeypatch.setattr(server._policy, "infer_batch", lambda seen, asked: asks.extend(asked) or infer(seen, asked))
    context = SessionContext("warm", "e0")
    asyncio.run(server.on_episode_start({"task": {"suite": "counting"}}, context))
    yield server, asks, context
    server._sessions.pop("warm")


def test_a_warm_start_ends_with_its_episode_stage_and_sentence(warm, monkeypatch):
    server, asks, context = warm
    first, second = (server.predict(observation(step), context) for step in (0, 4))
    assert asks[0].carry is None
    assert asks[1].carry is not None
    assert [ask.step for ask in asks] == [0, 4]
    other = server.predict({**observation(4), "task_description": "open the drawer"}, context)
    cold = replace(asks[2], carry=None)
    told = replace(server._observation(observation(4)), instruction="open the drawer")
    np.testing.assert_allclose(other["actions"], server._policy.infer(told, cold).actions[:4], atol=1e-6)

    async def nothing(self, obs, ctx):
        pass

    monkeypatch.setattr(vla_eval.PredictModelServer, "on_observation", nothing)
    asyncio.run(server.on_observation({**observation(5), "episode_restart": True}, context))
    server.predict(observation(5), context)
    assert (asks[-1].carry, asks[-1].step) == (None, 0)
    asyncio.run(server.on_episode_start({"task": {"suite": "counting"}}, context))
    again = server.predict(observation(0), context)
    assert (asks[-1].carry, asks[-1].seed) == (None, asks[0].seed)
    np.testing.assert_array_equal(again["actions"], first["actions"])
    assert np.abs(second["actions"] - first["actions"]).max() > 0


def test_a_foreign_carry_is_refused(warm):
    server, _, context = warm
    server._sessions["warm"].carry = b"another policy's"
    with pytest.raises(CarryError, match="another policy's, or none"):
        server.predict(observation(0), context)


def test_a_missing_camera_names_what_came(server):
    seen = observation(0)
    del seen["images"]["wrist"]
    with pytest.raises(ObservationError, match=r"no image 'wrist'.*sends agentview"):
        server._observation(seen)
    seen = observation(0)
    seen["joint_state"] = seen.pop("states")
    with pytest.raises(
        ObservationError, match=r"sends images, task_description, joint_state.*send_state.*--state=NAME"
    ):
        server._observation(seen)


def test_a_bad_observation_fails_alone(server):
    """vla-eval fails a whole batch with one error, so it is found before."""
    seen = {**observation(0), "states": np.zeros(14, np.float32)}
    with pytest.raises(ObservationError, match=r"'states' has shape \[14\], the policy sees 8"):
        asyncio.run(server.on_observation(seen, SessionContext("bad", "e0")))


def test_sessions_through_its_own_batches(server, monkeypatch):
    monkeypatch.setattr(server, "max_batch_size", 2)

    async def play(url, number):
        async with Connection(url, timeout=PATIENCE_S) as connection:
            await connection.start_episode({"task": {"suite": "counting", "task_id": number}})
            actions = [(await connection.act(observation(step)))["actions"] for step in range(5)]
            await connection.end_episode({})
            return np.stack(actions)

    async def play_both(url):
        return await asyncio.gather(play(url, 0), play(url, 1))

    with api.serve_background(server, ready_timeout=PATIENCE_S) as served:
        played = asyncio.run(play_both(served.url))
    for stream in (server._send_stream, server._receive_stream):
        stream.close()  # which vla-eval leaves to the garbage collector
    stop = StopRule("action_mse", threshold=1e-4)
    for number, actions in enumerate(played):
        seed = episode_seed(7, "counting", number, InitState(0))
        first, second = decide(0, 0, stop, seed), decide(4, 1, stop, seed)
        np.testing.assert_allclose(actions, [*first.actions[:4], second.actions[0]], atol=1e-5)


def test_a_state_of_another_name(server, monkeypatch):
    monkeypatch.setattr(server, "_state", "joint_state")
    seen = observation(3)
    seen["joint_state"] = seen.pop("states")
    np.testing.assert_array_equal(server._observation(seen).state, seen["joint_state"])
    assert "state" not in server.get_observation_spec(), "nobody knows what its entries are"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4, "stop": "latent"}, "give one of the two"),
        ({"threshold": 0.1}, "threshold belongs to an adaptive rule"),
        ({"depth": 4, "threshold": 0.1}, "threshold belongs to an adaptive rule"),
        ({"max_depth": 8}, "max_depth belongs to an adaptive rule"),
        ({"stop": "action_msee"}, "action_mse"),
        ({"benchmark": "libro"}, "libero"),
        ({"horizon": "sometimes"}, "unknown horizon"),
        ({"cameras": {"front": "agentview"}}, "no camera 'front'"),
        ({"seed": -1}, "seed must be at least 0, found -1"),
        ({"device": "cuda:7"}, "device 'cuda:7' cannot be used here"),
        ({"precision": "int4"}, "unknown precision 'int4'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        RDVLAModelServer(SHIPPED, **options)


def test_options_may_be_given_directly():
    assert vla_eval._nested("--depth=12") == "--args.depth=12"
    assert vla_eval._nested("--cameras.wrist=hand") == "--args.cameras.wrist=hand"
    assert vla_eval._nested("--port") == "--port"


def test_configs_name_what_exists():
    from vla_eval.registry import resolve_import_string

    for path in CONFIGS.glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        for entry in document.get("benchmarks", []):
            assert resolve_import_string(entry["benchmark"])(**entry["params"]).get_metadata()
        assert set(document.get("args", {})) <= vla_eval.OPTIONS | {"port"}


def test_uv_finds_this_checkout():
    text = (CONFIGS / "serve.py").read_text()
    block = text.partition("# /// script\n")[2].partition("# ///\n")[0]
    about = tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines()))
    assert about["dependencies"] == ["rdvla[vla-eval]"]
    root = (CONFIGS / about["tool"]["uv"]["sources"]["rdvla"]["path"]).resolve()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["name"] == "rdvla"
    assert "vla-eval" in project["optional-dependencies"]


def test_without_vla_eval_the_command_says_what_to_install(tmp_path):
    (tmp_path / "vla_eval.py").write_text("raise ModuleNotFoundError\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "rdvla.integrations.vla_eval"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("error: vla-eval is not installed. Install it with: pip install 'rdvla[vla-eval]'\n")


def test_the_command_says_what_our_error_says_wherever_it_comes_from(monkeypatch, capsys):
    def failing(error):
        def run_server(_):
            raise ExceptionGroup("outer", [ExceptionGroup("inner", [error])])

        return run_server

    monkeypatch.setattr(sys, "argv", ["rdvla"])
    monkeypatch.setattr("vla_eval.model_servers.serve.run_server", failing(ConfigError("depth must be at least 1.")))
    with pytest.raises(SystemExit):
        vla_eval.main()
    assert capsys.readouterr().err == "error: depth must be at least 1.\n"
    monkeypatch.setattr("vla_eval.model_servers.serve.run_server", failing(OSError(28, "No space left on device")))
    with pytest.raises(ExceptionGroup, match="outer"):
        vla_eval.main()


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "rdvla.integrations.vla_eval", "--checkpoint", SHIPPED, "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: [Errno" in done.stderr
    assert f"{port}" in done.stderr
    assert "choose another --port" in done.stderr


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of its LIBERO, in our process
def test_libero_without_docker(tmp_path):
    """One task and state that the shipped policy solves, in vla-eval's own LIBERO benchmark in this process."""
    server = RDVLAModelServer(SHIPPED, depth=4, horizon="4")
    wanted = config("vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark", tmp_path, suite="libero_object", seed=7)
    wanted["benchmarks"][0] |= {"max_tasks": 1}
    (result,) = api.evaluate(server, wanted)
    assert result["mean_success"] == 1.0


def deltas():
    return np.random.default_rng(0).uniform(-1, 1, (50, 7)).astype(np.float32)


def trained_on(gripper, actions):
    checkpoint = fakes.make(gripper=gripper)
    statistics = replace(fakes.statistics(), action=NormStats.compute(actions, [True] * 6 + [False]))
    return replace(checkpoint, statistics={"dataset": statistics})


@pytest.mark.parametrize(("benchmark", "gripper"), [("libero", "open_is_negative"), ("calvin", "open_is_positive")])
def test_actions_that_say_where_to_go_are_not_declared_deltas(tmp_path, benchmark, gripper):
    poses = deltas() * 0.2
    poses[:, 3] += np.pi  # the hand points down
    save_native(tmp_path / "arm", trained_on(gripper, poses))
    with pytest.raises(ConfigError, match=rf"--benchmark {benchmark}: deltas lie in -1.*delta_rx up to 3.*'other'"):
        RDVLAModelServer(str(tmp_path / "arm"), benchmark=benchmark)
    served = RDVLAModelServer(str(tmp_path / "arm"), benchmark="other")
    assert served.get_action_spec() == {"actions": RAW}


def test_a_policy_for_another_robot(tmp_path):
    save_native(tmp_path / "arm", trained_on("open_is_positive", deltas()))
    with pytest.raises(ConfigError, match=r"--benchmark libero: the gripper is open_is_negative there, not open_is_p"):
        RDVLAModelServer(str(tmp_path / "arm"))
    with pytest.raises(ConfigError, match="--benchmark calvin: the gripper is open_is_positive there, not open_is_n"):
        RDVLAModelServer(SHIPPED, benchmark="calvin")
    spoken = RDVLAModelServer(str(tmp_path / "arm"), benchmark="calvin")
    assert spoken.get_action_spec()["gripper"] == GRIPPER_CLOSE_NEG
    assert set(spoken.get_observation_spec()) == {"rgb_static", "rgb_gripper", "state", "language"}
    unknown = RDVLAModelServer(str(tmp_path / "arm"), benchmark="other", cameras={"primary": "front"})
    assert unknown.get_action_spec() == {"actions": RAW}
    assert set(unknown.get_observation_spec()) == {"front", "wrist", "language"}


def test_the_gripper_can_be_said_but_not_against_the_checkpoint():
    assert RDVLAModelServer(SHIPPED, gripper="open_is_negative").get_action_spec()["gripper"] == GRIPPER_CLOSE_POS
    with pytest.raises(ConfigError, match="open_is_negative"):
        RDVLAModelServer(SHIPPED, gripper="open_is_positive")
