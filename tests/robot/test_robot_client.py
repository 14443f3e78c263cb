"""The remote policy: the same answers as the local one, and what happens when the server does not answer."""

import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from websockets.utils import accept_key

from patience import PATIENCE_S, kept_port
from rdvla.errors import ObservationError, ServeError
from rdvla.execution import Executor, Synchronous
from rdvla.policy import Ask, Policy
from rdvla.robot.client import RemotePolicy
from rdvla.robot.connection import Connection, ConnectionLost, websocket_connector
from rdvla.server.background import serving
from rdvla.server.server import with_fingerprint
from rdvla.stops import StopRule
from rdvla.types import ActionChunk, Observation
from rdvla.wire.protocol import BadRequest, Busy, DeadlineMissed
from serve_fakes import QUICK, FakePolicy, expected_actions, metadata, observation
from serve_simulation import FakeClock, World, marked_actions, marked_observation


def remote(world: World, clock: FakeClock, **options: object) -> RemotePolicy:
    options = {"deadline_s": 1.0} | options
    return RemotePolicy("ws://simulated", connect=world.connector(clock), clock=clock, **options)  # type: ignore[arg-type]


def marker(chunk: ActionChunk) -> int:
    return round(float(chunk.actions[0, 0]))


@pytest.mark.parametrize("stop", [None, StopRule.fixed(3), StopRule("latent", 0.5, 2, 9, 3)])
def test_the_same_answer_as_the_local_policy(stop: StopRule | None) -> None:
    local = FakePolicy()
    with serving(FakePolicy(), QUICK) as server, RemotePolicy(server.url) as policy:
        for seed in (None, 0, 2**62):
            seen = observation(3, side=40)
            mine, theirs = local.infer(seen, Ask(stop, seed)), policy.infer(seen, Ask(stop, seed))
            np.testing.assert_array_equal(mine.actions, theirs.actions)
            assert theirs.actions.dtype == np.float32
            assert theirs.actions.flags.writeable
            assert (mine.num_recurrences, mine.convergence) == (theirs.num_recurrences, theirs.convergence)
            assert theirs.timings["total"] == 1.5
        assert policy.metadata == with_fingerprint(local.metadata, "", None)
        assert not theirs.out_of_time
        assert policy.infer(seen, Ask(stop, budget_ms=2)).out_of_time


def test_an_episode_through_the_executor_is_the_same() -> None:
    def actions(policy: Policy) -> np.ndarray:
        executor = Executor(policy, Synchronous(5))
        executor.reset(seed=11)
        return np.stack([executor.act(lambda step=step: observation(step)) for step in range(23)])

    with serving(FakePolicy(), QUICK) as server, RemotePolicy(server.url) as policy:
        np.testing.assert_array_equal(actions(policy), actions(FakePolicy()))


def test_only_the_cameras_of_the_policy_travel() -> None:
    served = FakePolicy(cameras=["wrist"])
    with serving(served, QUICK) as server, RemotePolicy(server.url) as policy:
        policy.infer(observation())
        assert list(served.seen[-1].images) == ["wrist"]
        seen = observation()
        with pytest.raises(ObservationError, match="no picture of 'wrist', only of primary"):
            policy.infer(Observation({"primary": seen.images["primary"]}, seen.state, seen.instruction))


def test_a_request_that_cannot_be_answered_is_not_repeated() -> None:
    served = FakePolicy()
    with serving(served, QUICK) as server, RemotePolicy(server.url) as policy:
        with pytest.raises(BadRequest, match="at most 64"):
            policy.infer(observation(), Ask(StopRule.fixed(65)))
        assert len(served.seen) == 1  # the warm-up
        policy.infer(observation())
        assert policy.reconnects == 1


@pytest.mark.parametrize("deadline_s", [0, float("nan"), 3601])
def test_a_deadline_that_no_request_can_have_is_refused(deadline_s: float) -> None:
    with pytest.raises(ServeError, match="deadline_s must be above 0 and at most 3600 s"):
        RemotePolicy("ws://127.0.0.1:1", deadline_s=deadline_s)


def test_a_server_killed_and_restarted() -> None:
    with kept_port() as port:
        config = QUICK.model_copy(update={"port": port})
        with serving(FakePolicy(), config) as server:
            policy = RemotePolicy(server.url)
            policy.infer(observation(1), Ask(seed=1))
        with pytest.raises(ServeError, match="no policy server answers"):
            RemotePolicy(f"ws://127.0.0.1:{port}", connect_timeout_s=0.2)
        with serving(FakePolicy(), config):
            actions = policy.infer(observation(2), Ask(seed=1)).actions
            np.testing.assert_array_equal(actions, expected_actions(observation(2), 12, 1))
            assert policy.reconnects == 1
            policy.close()


def test_an_answer_lost_on_its_way_is_asked_for_again() -> None:
    lost = iter([True, True, False, False])
    world, clock = World(loses=lambda: next(lost)), FakeClock()
    policy = remote(world, clock)
    assert marker(policy.infer(marked_observation(5))) == 5
    assert world.decided == [5, 5, 5]
    assert policy.reconnects == 2


def test_a_late_answer_is_never_taken_for_the_next_one() -> None:
    latencies = iter([5.0, 0.01])
    world, clock = World(latency=lambda: next(latencies)), FakeClock()
    policy = remote(world, clock)
    with pytest.raises(DeadlineMissed):
        policy.infer(marked_observation(1))
    assert clock.now() == pytest.approx(1.0, abs=0.01)
    clock.sleep(10)
    assert marker(policy.infer(marked_observation(2))) == 2


@pytest.mark.parametrize("refusal", ["busy: full", "rate_limit: slow down", "shutting_down: bye"])
def test_passing_refusals_are_waited_out(refusal: str) -> None:
    world, clock = World(refusals=[refusal] * 3), FakeClock()
    assert marker(remote(world, clock).infer(marked_observation(4))) == 4
    assert clock.now() < 0.5


def test_no_call_outlasts_its_deadline() -> None:
    clock = FakeClock()
    policy = remote(World(refusals=["busy: full"] * 1000), clock, deadline_s=0.7)
    with pytest.raises(Busy):
        policy.infer(marked_observation(1))
    assert clock.now() <= 0.71
    world = World(outages=[(0.5, 100.0)])
    clock = FakeClock()
    policy = remote(world, clock, deadline_s=0.7)
    clock.time = 2.0
    with pytest.raises(ServeError):
        policy.infer(marked_observation(1))
    assert clock.now() <= 2.71


def test_the_fallback_decides_when_the_server_does_not() -> None:
    def fallback(seen: Observation) -> ActionChunk:
        return ActionChunk(-marked_actions(round(float(seen.state[0]))))

    world, clock = World(outages=[(1.0, 5.0)]), FakeClock()
    policy = remote(world, clock, fallback=fallback)
    assert marker(policy.infer(marked_observation(1))) == 1
    clock.time = 2.0
    assert marker(policy.infer(marked_observation(2))) == -2
    assert policy.fallbacks == 1
    clock.time = 6.0
    assert marker(policy.infer(marked_observation(3))) == 3
    world.refusals.append("bad_request: no such rule")
    with pytest.raises(BadRequest):
        policy.infer(marked_observation(4))
    assert policy.fallbacks == 1


def test_a_server_that_stops_reading_holds_no_call_beyond_its_deadline() -> None:
    """A socket that greets and then takes nothing: the message does not fit into the buffers."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        greeter = threading.Thread(target=_greet_only, args=(listener, over))
        greeter.start()
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        connection = websocket_connector(url, None, None, deadline_s=0.3)(PATIENCE_S)
        with pytest.raises(ConnectionLost):
            connection.send(bytes(10_000_000))
        assert greeter.is_alive(), "the send ended only because the server let go"
        over.set()
        connection.close()
        greeter.join()


def _greet_only(listener: socket.socket, over: threading.Event) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = connection.recv(4096).decode()
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        answer = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        answer.append(f"Sec-WebSocket-Accept: {accept_key(key)}")
        connection.sendall(("\r\n".join(answer) + "\r\n\r\n").encode())
        over.wait(PATIENCE_S)


def test_another_policy_behind_the_same_address_is_refused() -> None:
    world, clock = World(outages=[(1.0, 1.1)]), FakeClock()
    policy = remote(world, clock)
    clock.time = 1.2
    world.metadata = metadata(["primary"])
    with pytest.raises(ServeError, match="cameras was"):
        policy.infer(marked_observation(1))
    world.metadata = metadata(fingerprint="another checkpoint")
    with pytest.raises(ServeError, match="fingerprint was , is another checkpoint"):
        policy.infer(marked_observation(1))
    world.metadata = metadata()
    assert marker(policy.infer(marked_observation(2))) == 2


@pytest.mark.parametrize("patience_s", [5.0, 0.5])
def test_nobody_at_the_address_is_said_at_once_and_given_up_soon(
    patience_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock, warned = FakeClock(), []

    def connect(timeout_s: float) -> Connection:
        clock.sleep(timeout_s / 2)
        warned.append((clock.now(), len(caplog.records)))
        raise ConnectionLost("no policy server answers at ws://robot:1.")

    with pytest.raises(ConnectionLost, match="ws://robot:1"):
        RemotePolicy("ws://robot:1", connect=connect, clock=clock, connect_timeout_s=patience_s)
    assert clock.now() == pytest.approx(patience_s, rel=0.3)
    assert clock.now() <= patience_s
    told = [record.getMessage() for record in caplog.records]
    assert told == (["no policy server answers at ws://robot:1. Trying for another 4 s."] if patience_s > 1 else [])
    assert all(count > 0 for time, count in warned if time > 1)


def test_a_server_that_listens_and_says_nothing_is_given_up_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionLost, match=f"no policy server answers at ws://127.0.0.1:{port} "):
            RemotePolicy(f"ws://127.0.0.1:{port}", connect_timeout_s=0.3)


def test_addresses_that_are_none() -> None:
    with pytest.raises(ServeError, match="not a server's address"):
        RemotePolicy("http://127.0.0.1:1")
    with pytest.raises(ServeError, match="deadline_s must be above 0"):
        RemotePolicy("ws://127.0.0.1:1", deadline_s=0)
    with pytest.raises(ServeError, match="connect_timeout_s must be above 0"):
        RemotePolicy("ws://127.0.0.1:1", connect_timeout_s=0)


def test_the_client_is_thin() -> None:
    code = (
        "import sys, rdvla.client\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'yaml', 'PIL', 'simplejpeg', 'prometheus_client', 'mujoco'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_interrupts_a_request_leaves_no_answer_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    world, clock = World(), FakeClock()
    policy = remote(world, clock)
    connection = policy._connection
    assert connection is not None

    def interrupted(timeout_s: float) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        policy.infer(marked_observation(2))
    assert [marker(policy.infer(marked_observation(k))) for k in (3, 4)] == [3, 4]
    assert policy.reconnects == 1


def test_an_observation_too_large_for_the_server_is_said_at_once() -> None:
    served = FakePolicy()
    with serving(served, QUICK.model_copy(update={"max_message_bytes": 100_000})) as server:
        policy = RemotePolicy(server.url, fallback=lambda seen: pytest.fail("the local action would hide it"))
        with pytest.raises(BadRequest, match=r"too large for the server .*send smaller pictures, or raise max_message"):
            policy.infer(observation(side=400))
        assert (policy.reconnects, policy.fallbacks) == (0, 0)
        np.testing.assert_array_equal(
            policy.infer(observation(1, side=40)).actions.shape, expected_actions(observation(1), 12, 1).shape
        )


@pytest.mark.parametrize("port", ["abc", "99999"])
def test_a_port_that_is_none(port: str) -> None:
    with pytest.raises(ServeError, match=f"'ws://127.0.0.1:{port}' is not a server's address"):
        RemotePolicy(f"ws://127.0.0.1:{port}")


def test_a_key_is_read_as_the_server_reads_it_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    def connector(url: str, key: str | None, *_: object) -> None:
        keys.append(key)
        raise ConnectionLost("enough")

    monkeypatch.setattr("rdvla.robot.client.websocket_connector", connector)
    monkeypatch.setenv("RDVLA_API_KEY", "0123456789abcdef\n")
    with pytest.raises(ConnectionLost):
        RemotePolicy("ws://127.0.0.1:1")
    assert keys == ["0123456789abcdef"]
    with pytest.raises(ServeError, match=r"^the API key \(api_key, or RDVLA_API_KEY\) is not printable ASCII\.$"):
        RemotePolicy("ws://127.0.0.1:1", api_key="0123456789\nabcdef")
