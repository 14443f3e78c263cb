"""The server over real sockets on loopback: protocol, errors, batching, deadlines, shutdown."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from patience import PATIENCE_S, eventually
from rdvla import __version__
from rdvla.errors import ServeError
from rdvla.policy import Ask
from rdvla.server.background import serving
from rdvla.server.batching import Batcher
from rdvla.server.metrics import Metrics
from rdvla.server.server import PolicyServer
from rdvla.wire.adapters import to_message
from rdvla.wire.codec import decode, encode
from rdvla.wire.protocol import RequestOptions, ShuttingDown
from serve_fakes import CHUNK, QUICK, BatchingPolicy, FakePolicy, expected_actions, observation, open_socket


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with serving(FakePolicy(), QUICK) as running:
        yield running


def get(server: PolicyServer, path: str) -> tuple[int, str]:
    url = server.url.replace("ws", "http", 1) + path
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(server: PolicyServer, name: str) -> float:
    lines = [line for line in get(server, "/metrics")[1].splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[-1])


def open_client(server: PolicyServer) -> tuple[ClientConnection, dict[str, Any]]:
    connection = open_socket(server.url)
    return connection, decode(connection.recv())


def occupy(server: PolicyServer, policy: FakePolicy) -> ClientConnection:
    """Return a client whose request keeps the policy busy until `policy.gate` is set again."""
    policy.gate.clear()
    policy.is_deciding.clear()
    connection, _ = open_client(server)
    connection.send(encode(to_message(observation())))
    assert policy.is_deciding.wait(PATIENCE_S)
    return connection


def wait_for(server: PolicyServer, name: str, value: float) -> None:
    eventually(lambda: metric(server, name) == value, f"{name} = {value}")


def ask(connection: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    connection.send(encode(message))
    reply = connection.recv(timeout=PATIENCE_S)
    assert isinstance(reply, bytes), reply
    return decode(reply)


def test_metadata_come_first(server: PolicyServer) -> None:
    connection, metadata = open_client(server)
    assert metadata["cameras"] == ["primary", "wrist"]
    assert (metadata["state_dim"], metadata["action_dim"], metadata["chunk_size"]) == (8, 7, 8)
    fingerprint = f"fake, own rule, rdvla {__version__}"
    assert metadata["extra"] == {"images": {"size": 32}, "fingerprint": fingerprint}
    assert not any(isinstance(value, np.ndarray) for value in metadata.values())
    connection.close()


def test_a_reply_has_the_actions_and_otherwise_plain_values(server: PolicyServer) -> None:
    connection, _ = open_client(server)
    seen = observation()
    options = {"stop": "latent", "depth": 5, "seed": 3, "budget_ms": 50.0}
    first, second = ask(connection, to_message(seen) | options), ask(connection, to_message(seen) | options)
    np.testing.assert_array_equal(first["actions"], expected_actions(seen, 5, 3))
    assert [key for key, value in first.items() if isinstance(value, np.ndarray)] == ["actions"]
    assert first["num_recurrences"] == 5
    assert first["convergence"] == [1, 0.5, 0.25, 0.125, 0.0625]
    assert first["n_action_steps"] == CHUNK  # linear decay: few iterations, the whole chunk
    assert first["policy_timing"]["infer_ms"] == 1.5
    assert first["budget_used"] == pytest.approx(0.03)
    assert first["out_of_time"] is False
    assert first["server_timing"]["infer_ms"] > 0
    assert "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]
    connection.close()


@pytest.mark.parametrize(
    ("options", "depth"),
    [
        ({}, 12),
        ({"depth": 4}, 4),
        ({"depth": np.int64(4)}, 4),
        ({"stop": {"name": "action_l2", "max_depth": 7, "threshold": np.float32(0.1)}}, 7),
        ({"stop": "cosine", "depth": 9}, 9),
        ({"budget_ms": 3}, 3),
    ],
)
def test_options(server: PolicyServer, options: dict[str, Any], depth: int) -> None:
    connection, _ = open_client(server)
    assert ask(connection, to_message(observation()) | options)["num_recurrences"] == depth
    connection.close()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"depth": 0}, "'depth' must be a whole number in 1..64"),
        ({"depth": 10**6}, "'depth' must be"),
        ({"depth": True}, "'depth' must be"),
        ({"depth": "4"}, "'depth' must be"),
        ({"stop": {"max_depth": 65}}, "at most 64"),
        ({"stop": "acton_l2"}, "Did you mean 'action_l2'"),
        ({"stop": {"name": "fixed", "maxdepth": 3}}, "Did you mean 'max_depth'"),
        ({"stop": {"name": ["fixed"]}}, "name must be text"),
        ({"stop": {"name": "latent", "threshold": "low"}}, "threshold must be a finite number"),
        ({"stop": 5}, "'stop' must be"),
        ({"seed": -1}, "'seed' must be"),
        ({"seed": 1.5}, "'seed' must be"),
        ({"budget_ms": 0}, "'budget_ms' must be in"),
        ({"budget_ms": float("nan")}, "'budget_ms' must be in"),
        ({"deadline_ms": "soon"}, "'deadline_ms' must be a number"),
        ({"warm_start": "warm"}, "unknown warm start 'warm'"),
        ({"warm_start": ["half"]}, "unknown warm start"),
        ({"warm_start": "half", "carry": "text"}, "'carry' must be"),
        ({"carry": b"x"}, "of no use to a start from noise"),
        ({"instruction": ""}, "non-empty"),
        ({"state": np.zeros(3)}, "shape"),
        ({"images": {"primary": np.zeros((4, 4, 3), np.uint8)}}, "'wrist' is missing"),
    ],
)
def test_a_bad_request_is_explained_and_closed_with_1011(
    server: PolicyServer, change: dict[str, Any], match: str
) -> None:
    connection, _ = open_client(server)
    connection.send(encode(to_message(observation()) | change))
    text = connection.recv(timeout=PATIENCE_S)
    assert isinstance(text, str)
    assert text.startswith("bad_request: ")
    assert match in text
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    assert metric(server, 'rdvla_errors_total{code="bad_request"}') == 1


def test_text_is_refused(server: PolicyServer) -> None:
    connection, _ = open_client(server)
    connection.send("hello")
    assert "not a msgpack message" in connection.recv(timeout=PATIENCE_S)


def test_a_message_beyond_the_limit_closes_the_connection() -> None:
    with serving(FakePolicy(), QUICK.model_copy(update={"max_message_bytes": 10_000})) as server:
        connection, _ = open_client(server)
        connection.send(b"\0" * 20_000)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        other, _ = open_client(server)
        ask(other, to_message(observation(side=8)))
        other.close()


def test_a_failing_policy_tells_the_client_nothing_but_that(caplog: pytest.LogCaptureFixture) -> None:
    policy = FakePolicy()
    policy.failure = RuntimeError("the secret path /home/me")
    with serving(policy, QUICK) as server:
        connection, _ = open_client(server)
        connection.send(encode(to_message(observation(instruction="fail"))))
        text = connection.recv(timeout=PATIENCE_S)
        assert text == "internal: the policy failed; the server's log says why."
        assert "secret path" in caplog.text
        again, _ = open_client(server)
        ask(again, to_message(observation()))
        again.close()


def test_health_metrics_and_the_other_paths(server: PolicyServer) -> None:
    connection, _ = open_client(server)
    ask(connection, to_message(observation()))
    assert get(server, "/healthz") == (200, "OK\n")
    assert get(server, "/nothing")[0] == 404
    assert get(server, "/")[0] == 426
    assert metric(server, 'rdvla_requests_total{layout="native"}') == 1
    wait_for(server, "rdvla_request_seconds_count", 1)  # counted once the reply is on its way
    assert metric(server, "rdvla_recurrences_count") == 2  # with the warm-up
    assert metric(server, "rdvla_ready") == 1
    assert metric(server, "rdvla_connections") == 1
    connection.close()


def test_not_ready_before_the_warm_up_and_requests_wait_for_it() -> None:
    policy = FakePolicy()
    policy.gate.clear()

    def talk(server: PolicyServer) -> tuple[int, int]:
        assert policy.is_deciding.wait(PATIENCE_S)
        connection, _ = open_client(server)
        connection.send(encode(to_message(observation())))
        before = get(server, "/healthz")[0]
        policy.gate.set()
        assert isinstance(connection.recv(timeout=PATIENCE_S), bytes)
        connection.close()
        wait_for(server, "rdvla_ready", 1)
        return before, get(server, "/healthz")[0]

    async def scenario() -> tuple[int, int]:
        server = PolicyServer(policy, QUICK)
        starting = asyncio.create_task(server.start())
        health = await asyncio.to_thread(talk, server)
        await starting
        await server.stop()
        return health

    assert asyncio.run(scenario()) == (503, 200)


def test_a_policy_that_fails_its_warm_up_stops_the_server() -> None:
    policy = FakePolicy()
    policy.metadata = metadata_with_state(9)
    policy.infer = _refuse  # type: ignore[method-assign]
    with pytest.raises(ServeError, match="warm-up"), serving(policy, QUICK):
        pass


def _refuse(*args: object, **kwargs: object) -> Any:
    raise ServeError("no")


def metadata_with_state(size: int) -> Any:
    from rdvla.policy import PolicyMetadata

    return PolicyMetadata("fake", ("primary",), size, 7, 8, {})


def test_an_occupied_port_is_named(server: PolicyServer) -> None:
    with (
        pytest.raises(ServeError, match="cannot listen"),
        serving(FakePolicy(), QUICK.model_copy(update={"port": server.port})),
    ):
        pass


def test_slow_inference_blocks_neither_health_nor_other_connections() -> None:
    policy = FakePolicy()
    with serving(policy, QUICK) as server:
        connection = occupy(server, policy)
        assert get(server, "/healthz")[0] == 200
        other, _ = open_client(server)
        other.close()
        policy.gate.set()
        assert isinstance(connection.recv(timeout=PATIENCE_S), bytes)
        connection.close()


def test_requests_that_arrive_together_are_batched_and_not_mixed_up() -> None:
    policy = BatchingPolicy()
    with serving(policy, QUICK) as server:
        first = occupy(server, policy)
        connections = [open_client(server)[0] for _ in range(8)]
        for index, connection in enumerate(connections):
            connection.send(encode(to_message(observation(index)) | {"depth": 3 + index % 2, "seed": index}))
        wait_for(server, "rdvla_queue_length", 8)
        policy.gate.set()
        for index, connection in enumerate(connections):
            reply = connection.recv(timeout=PATIENCE_S)
            assert isinstance(reply, bytes)
            expected = expected_actions(observation(index), 3 + index % 2, index)
            np.testing.assert_array_equal(decode(reply)["actions"], expected)
            assert decode(reply)["server_timing"]["batch_size"] == 4
        assert policy.batches == [4, 4]  # two depths, so two groups of four
        assert len(policy.threads) == 1
        assert threading.get_ident() not in policy.threads
        for connection in (first, *connections):
            connection.close()


def test_a_bad_request_in_a_batch_spoils_no_other() -> None:
    """The batch as a whole is refused by the policy; then each of its requests is decided alone."""
    policy = BatchingPolicy()
    words = ["good", "bad", "fine", "nice"]
    with serving(policy, QUICK) as server:
        first = occupy(server, policy)
        connections = [open_client(server)[0] for _ in words]
        for word, connection in zip(words, connections, strict=True):
            connection.send(encode(to_message(observation(instruction=word))))
        wait_for(server, "rdvla_queue_length", 4)
        policy.gate.set()
        for word, connection in zip(words, connections, strict=True):
            reply = connection.recv(timeout=PATIENCE_S)
            assert isinstance(reply, bytes)
            expected = expected_actions(observation(instruction=word), 12, None)
            np.testing.assert_array_equal(decode(reply)["actions"], expected)
        assert policy.batches == [4]
        for connection in (first, *connections):
            connection.close()


def test_a_full_queue_is_busy_and_the_connection_stays() -> None:
    config, policy = QUICK.model_copy(update={"max_queue": 1}), FakePolicy()
    with serving(policy, config) as server:
        first = occupy(server, policy)
        second, third = open_client(server)[0], open_client(server)[0]
        second.send(encode(to_message(observation())))
        wait_for(server, "rdvla_queue_length", 1)
        third.send(encode(to_message(observation())))
        assert "busy: 1 requests are waiting" in third.recv(timeout=PATIENCE_S)
        policy.gate.set()
        for connection in (first, second):
            assert isinstance(connection.recv(timeout=PATIENCE_S), bytes)
        ask(third, to_message(observation()))
        assert metric(server, 'rdvla_errors_total{code="busy"}') == 1
        for connection in (first, second, third):
            connection.close()


def test_a_late_answer_is_not_sent_and_the_connection_stays() -> None:
    policy = FakePolicy()
    with serving(policy, QUICK) as server:
        connection, _ = open_client(server)
        policy.gate.clear()
        connection.send(encode(to_message(observation(1)) | {"deadline_ms": 100}))
        text = connection.recv(timeout=PATIENCE_S)
        assert isinstance(text, str)
        assert text.startswith("deadline: ")
        policy.gate.set()
        reply = ask(connection, to_message(observation(2)))
        np.testing.assert_array_equal(reply["actions"], expected_actions(observation(2), 12, None))
        connection.close()


def test_expired_and_abandoned_requests_never_reach_the_policy() -> None:
    policy = FakePolicy()
    with serving(policy, QUICK) as server:
        first = occupy(server, policy)
        second, third = open_client(server)[0], open_client(server)[0]
        second.send(encode(to_message(observation(2)) | {"deadline_ms": 100}))
        third.send(encode(to_message(observation(3))))
        text = second.recv(timeout=PATIENCE_S)
        assert isinstance(text, str)
        assert text.startswith("deadline: ")
        wait_for(server, "rdvla_queue_length", 2)
        third.close()
        wait_for(server, "rdvla_abandoned_total", 1)
        policy.gate.set()
        assert isinstance(first.recv(timeout=PATIENCE_S), bytes)
        ask(second, to_message(observation(4)))
        states = [seen.state.tolist() for seen in policy.seen[1:]]
        assert states == [observation(number).state.tolist() for number in (7, 4)]
        first.close()
        second.close()


def test_shutdown_answers_what_was_accepted() -> None:
    policy = FakePolicy()

    def decide_once_it_stops(server: PolicyServer) -> None:
        eventually(lambda: b"rdvla_ready 0.0" in server.metrics.text())
        policy.gate.set()

    with serving(policy, QUICK) as server:
        connections = [occupy(server, policy), *(open_client(server)[0] for _ in range(2))]
        for connection in connections[1:]:
            connection.send(encode(to_message(observation())))
        wait_for(server, "rdvla_queue_length", 2)
        stopping = threading.Thread(target=decide_once_it_stops, args=(server,))
        stopping.start()
    stopping.join()
    for connection in connections:
        assert isinstance(connection.recv(timeout=PATIENCE_S), bytes)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


def test_a_default_rule_of_the_policy_is_left_alone(server: PolicyServer) -> None:
    connection, _ = open_client(server)
    assert json.dumps(ask(connection, to_message(observation()))["convergence"]) == "[]"
    assert ask(connection, to_message(observation()))["num_recurrences"] == FakePolicy.default_depth
    connection.close()


def test_a_worker_that_gathers_a_batch_ends_with_the_server() -> None:
    batcher = Batcher(BatchingPolicy(), Metrics(), max_batch=8, max_queue=8, window_s=PATIENCE_S)
    options, late = RequestOptions(Ask()), time.monotonic() + PATIENCE_S
    gathering, expected = threading.Event(), batcher._expected

    def told() -> int:
        gathering.set()
        return max(2, expected())

    batcher._expected = told  # type: ignore[method-assign]
    waiting = batcher.submit(observation(), options, client="a", deadline=late)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(batcher._take)
        assert gathering.wait(PATIENCE_S)
        batcher.stop(0)
        jobs = taken.result(PATIENCE_S)
    assert jobs is not None
    assert [job.future for job in jobs] in ([waiting], [])
    if not jobs:
        with pytest.raises(ShuttingDown):
            waiting.result(0)
