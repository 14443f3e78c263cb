"""What SECURITY.md promises, over real sockets on loopback."""

import contextlib
import dataclasses
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from patience import PATIENCE_S, eventually
from rdvla.errors import ConfigError, ServeError
from rdvla.policy import Ask
from rdvla.robot.client import RemotePolicy
from rdvla.robot.connection import ConnectionLost
from rdvla.server import conversation, gate
from rdvla.server.background import serving
from rdvla.server.config import ServeConfig, read_api_key
from rdvla.server.gate import TokenBucket
from rdvla.server.server import PolicyServer
from rdvla.wire.adapters import to_message
from rdvla.wire.codec import encode
from serve_fakes import CAMERAS, QUICK, FakePolicy, expected_actions, make_certificate, observation, open_socket
from serve_fuzz import HANDSHAKE, run

KEY = "a key of enough length"


def test_loopback_is_the_default() -> None:
    assert ServeConfig().host == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "robot.example", ""])
def test_other_hosts_demand_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDVLA_API_KEY", raising=False)
    config = ServeConfig(host=host)
    with pytest.raises(ConfigError, match="API key is needed"):
        read_api_key(config, None)
    with pytest.raises(ConfigError, match="API key is needed"):
        PolicyServer(FakePolicy(), config)
    with pytest.raises(ConfigError, match="served on loopback only"):
        ServeConfig.build({"host": host, "web": True})


def test_the_live_page_and_a_key_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="takes no API key"):
        PolicyServer(FakePolicy(), ServeConfig(web=True), api_key=KEY)


def test_the_key_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RDVLA_API_KEY", KEY)
    assert read_api_key(ServeConfig(), None) == KEY
    file = tmp_path / "key"
    file.write_text("another key from a file\n")
    assert read_api_key(ServeConfig(), file) == "another key from a file"
    monkeypatch.delenv("RDVLA_API_KEY")
    assert read_api_key(ServeConfig(), None) is None
    for content, match in [("", "is empty"), ("short", "at least 16"), ("ünïcödé " * 4, "printable ASCII")]:
        file.write_text(content)
        with pytest.raises(ConfigError, match=match):
            read_api_key(ServeConfig(), file)
    with pytest.raises(ConfigError, match="cannot read"):
        read_api_key(ServeConfig(), tmp_path / "absent")


def http(server: PolicyServer, path: str = "/", **headers: str) -> str:
    """Return the status line's code for a GET with these headers."""
    lines = [f"GET {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection.recv(100).decode().split()[1]


def test_a_wrong_key_opens_nothing_but_the_health_check() -> None:
    with serving(FakePolicy(), QUICK, api_key=KEY) as server:
        for header in [{}, {"Authorization": "Api-Key wrong"}, {"Authorization": f"Bearer {KEY}"}]:
            with pytest.raises(InvalidStatus) as refused:
                open_socket(server.url, additional_headers=header)
            assert refused.value.response.status_code == 401
            assert http(server, "/metrics", **header) == "401"
        assert http(server, "/healthz") == "200"
        assert http(server, "/metrics", Authorization=f"Api-Key {KEY}") == "200"
        with pytest.raises(ServeError, match="HTTP 401: send the header"):
            RemotePolicy(server.url, api_key="wrong")
        with RemotePolicy(server.url, api_key=KEY) as policy:
            policy.infer(observation())


def test_browsers_on_other_sites_are_refused() -> None:
    with serving(FakePolicy(), QUICK) as server:
        own = f"127.0.0.1:{server.port}"
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
        assert http(server, Host=own, Origin=f"http://{own}", **upgrade) == "101"
        assert http(server, Host=own, **upgrade) == "101"
        for host, origin in [
            (own, "http://evil.example"),
            (own, "null"),
            (own, "http://127.0.0.1:1"),
            (f"evil.example:{server.port}", f"http://evil.example:{server.port}"),
            (own, "http://[::1"),
        ]:
            assert http(server, Host=host, Origin=origin, **upgrade) == "403"


def test_a_server_that_says_nothing_after_tls_is_absent(tmp_path: Path) -> None:
    """TLS itself has sent something by then (session tickets), so that a read is under way."""
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    held: list[ssl.SSLSocket] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                held.append(context.wrap_socket(listener.accept()[0], server_side=True))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        with pytest.raises(ConnectionLost, match="no policy server answers"):
            RemotePolicy(f"wss://127.0.0.1:{listener.getsockname()[1]}", tls_ca=certificate, connect_timeout_s=0.3)
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def test_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    config = QUICK.model_copy(update={"tls_cert": certificate, "tls_key": key})
    with serving(FakePolicy(), config) as server:
        assert server.url.startswith("wss://")
        with RemotePolicy(server.url, tls_ca=certificate) as policy:
            assert policy.infer(observation(), Ask(seed=1)).actions.shape == (8, 7)
        with pytest.raises(ServeError, match="not trusted"):
            RemotePolicy(server.url)
        with pytest.raises(ServeError, match="no policy server"):
            RemotePolicy(server.url.replace("wss", "ws"), connect_timeout_s=0.3)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificate)
        with open_socket(server.url, ssl=context) as connection:
            assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
            assert isinstance(connection.recv(), bytes)


def test_tls_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="go together"):
        ServeConfig.build({"tls_cert": tmp_path / "cert.pem"})
    config = QUICK.model_copy(update={"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"})
    with pytest.raises(ConfigError, match="cannot use tls_cert"), serving(FakePolicy(), config):
        pass


def test_compression_is_never_negotiated() -> None:
    with serving(FakePolicy(), QUICK) as server:
        from websockets.sync.client import connect

        with connect(server.url, compression="deflate", proxy=None, open_timeout=PATIENCE_S) as connection:
            assert connection.protocol.extensions == []


def test_too_many_connections_are_refused() -> None:
    with serving(FakePolicy(), QUICK.model_copy(update={"max_connections": 2})) as server:
        first, second = open_socket(server.url), open_socket(server.url)
        with pytest.raises(InvalidStatus) as refused:
            open_socket(server.url)
        assert refused.value.response.status_code == 503
        first.close()
        eventually(partial(is_admitted, server))
        second.close()


def is_admitted(server: PolicyServer) -> bool:
    try:
        open_socket(server.url).close()
    except (InvalidHandshake, OSError, EOFError):
        return False
    return True


def silent_sockets(server: PolicyServer, count: int) -> list[socket.socket]:
    """Return connections on which nothing is ever sent."""
    return [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) for _ in range(count)]


def test_silent_sockets_are_dropped_before_they_add_up() -> None:
    with serving(FakePolicy(), QUICK.model_copy(update={"max_connections": 2})) as server:
        silent = silent_sockets(server, 30)
        refused = f'rdvla_refused_connections_total{{reason="too_many_sockets"}} {30 - 8:.1f}'.encode()
        eventually(lambda: refused in server.metrics.text())
        for connection in silent:
            connection.close()


def test_silent_sockets_are_dropped_after_a_while() -> None:
    config = QUICK.model_copy(update={"max_connections": 2, "handshake_timeout_s": 0.3})
    with serving(FakePolicy(), config) as server:
        for connection in silent_sockets(server, 8):
            with connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        eventually(partial(is_admitted, server))


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock by which rates are limited: nothing becomes allowed again."""
    for room in (gate, conversation):
        monkeypatch.setattr(room, "TokenBucket", partial(TokenBucket, clock=lambda: 0.0))


@pytest.mark.usefixtures("frozen")
def test_new_connections_are_rate_limited() -> None:
    with serving(FakePolicy(), QUICK.model_copy(update={"connections_per_minute": 8})) as server:
        for _ in range(2):
            open_socket(server.url).close()
        with pytest.raises(InvalidStatus) as refused:
            open_socket(server.url)
        assert refused.value.response.status_code == 429


@pytest.mark.usefixtures("frozen")
def test_requests_are_rate_limited_and_the_connection_stays() -> None:
    with serving(FakePolicy(), QUICK.model_copy(update={"requests_per_second": 8.0})) as server:
        connection = open_socket(server.url)
        connection.recv()
        answers = []
        started = time.monotonic()
        for _ in range(6):
            connection.send(encode(to_message(observation(side=8))))
            answers.append(connection.recv(timeout=PATIENCE_S))
        assert [isinstance(answer, bytes) for answer in answers] == [True] * 2 + [False] * 4
        assert all(answer.startswith("rate_limit: ") for answer in answers[2:])
        assert time.monotonic() - started > 4 / 8 - 0.01  # each refusal waits until the next request is due
        connection.close()


def test_a_token_bucket_refills_with_time() -> None:
    now = [0.0]
    bucket = TokenBucket(2.0, 3.0, clock=lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.5
    assert [bucket.take() for _ in range(2)] == [0, 0.5]
    now[0] = 100.0
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


@contextlib.contextmanager
def not_read(send_timeout_s: float) -> Iterator[PolicyServer]:
    """Serve a client that does not read its greeting."""
    policy = FakePolicy()
    greeting = {f"padding {index}": "x" * 900_000 for index in range(8)}  # more than the sockets' buffers hold
    policy.metadata = dataclasses.replace(policy.metadata, extra=greeting)
    config = QUICK.model_copy(update={"send_timeout_s": send_timeout_s})
    with serving(policy, config) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall(HANDSHAKE)
        yield server


def test_a_client_that_does_not_read_is_dropped() -> None:
    with not_read(send_timeout_s=0.3) as server:
        eventually(lambda: b'rdvla_errors_total{code="slow_client"} 1.0' in server.metrics.text())


def test_a_client_that_does_not_read_holds_up_no_other() -> None:
    with not_read(send_timeout_s=PATIENCE_S) as server, RemotePolicy(server.url) as friend:
        friend.infer(observation())


def test_a_client_that_trickles_its_message_is_dropped() -> None:
    config = QUICK.model_copy(update={"read_timeout_s": 0.2})
    with serving(FakePolicy(), config) as server:
        connection = open_socket(server.url)
        connection.recv()

        def trickle():  # type: ignore[no-untyped-def]
            for _ in range(int(PATIENCE_S / 0.3)):
                yield b"\x81"
                time.sleep(0.3)

        with pytest.raises(ConnectionClosed):
            connection.send(trickle())


def test_an_idle_client_is_dropped() -> None:
    with serving(FakePolicy(), QUICK.model_copy(update={"idle_timeout_s": 0.2})) as server:
        connection = open_socket(server.url)
        connection.recv()
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=PATIENCE_S)


def test_fuzzing_for_a_few_seconds() -> None:
    """`python tests/serve_fuzz.py --frames 100000` does the same for longer."""
    outcome = run(1500, seed=7, max_seconds=PATIENCE_S)
    assert sum(outcome.sent.values()) >= 1500
    assert outcome.faults() == []


def test_the_policy_cannot_be_reached_by_two_threads() -> None:
    policy = FakePolicy()
    with serving(policy, QUICK) as server:
        clients = [RemotePolicy(server.url) for _ in range(3)]
        for index, client in enumerate(clients):
            seen = observation(index)
            assert (client.infer(seen, Ask(seed=2)).actions == expected_actions(seen, 12, 2)).all()
            assert list(client.metadata.cameras) == list(CAMERAS)
            client.close()
    assert len(policy.threads) == 1
