"""LeRobot's asynchronous server, its own messages over gRPC, with our policy behind it (`make lerobot`)."""

import json
import pickle
import shutil
import sys
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.async_inference.policy_server import PolicyServer
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks
from lerobot_policy_rdvla import async_server

from rdvla.checkpoints import load
from rdvla.checkpoints.lerobot import save_lerobot
from rdvla.policies import load_policy
from rdvla.policy import Ask, decision_seed
from rdvla.stops import StopRule
from rdvla.types import Observation

SHIPPED = "rdvla_tiny_libero"
SENTENCE = "pick up the milk and place it in the basket"
STATE = [f"s{i}" for i in range(8)]
CAMERAS = {"image": "primary", "image2": "wrist"}


@pytest.fixture
def pretrained(tmp_path):
    save_lerobot(tmp_path / "policy", load(SHIPPED))
    config = tmp_path / "policy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"depth": 4, "seed": 7, "device": "cpu"}))
    yield tmp_path / "policy"
    shutil.rmtree(tmp_path / "policy")


@pytest.fixture
def stub():
    async_server.accept()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(PolicyServer(PolicyServerConfig()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", grpc_channel_options()) as channel:
        yield services_pb2_grpc.AsyncInferenceStub(channel)
    server.stop(None).wait()


def test_what_is_missing_is_one_message(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lerobot.async_inference", None)
    with pytest.raises(SystemExit) as stopped:
        async_server.main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: LeRobot's asynchronous server needs more (")
    assert "pip install 'lerobot[async]'" in told


def features():
    state = {"dtype": "float32", "shape": (8,), "names": STATE}
    names = ["height", "width", "channels"]
    camera = {"dtype": "image", "shape": (256, 256, 3), "names": names}
    return {"observation.state": state, **{f"observation.images.{name}": camera for name in CAMERAS}}


def test_it_answers_with_the_chunk_of_load_policy(pretrained, stub):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in CAMERAS}
    state = (0.1 * rng.normal(size=8)).astype(np.float32)
    stub.Ready(services_pb2.Empty())
    asked = RemotePolicyConfig("rdvla", str(pretrained), features(), actions_per_chunk=8, device="cpu")
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(asked)))
    raw = {**dict(zip(STATE, state.tolist(), strict=True)), **images, "task": SENTENCE}
    seen = pickle.dumps(TimedObservation(timestamp=time.time(), timestep=0, observation=raw, must_go=True))
    stub.SendObservations(send_bytes_in_chunks(seen, services_pb2.Observation))
    answer = pickle.loads(stub.GetActions(services_pb2.Empty()).data)  # noqa: TID251
    found = np.stack([action.get_action().numpy() for action in answer])
    shown = {ours: images[theirs] for theirs, ours in CAMERAS.items()}
    entropy = np.random.SeedSequence([7, 0, 0])  # policy.seed, first episode, first row
    seed = decision_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1), 0)
    expected = load_policy(SHIPPED).infer(Observation(shown, state, SENTENCE), Ask(StopRule.fixed(4), seed=seed))
    np.testing.assert_allclose(found, expected.actions, atol=1e-6)
