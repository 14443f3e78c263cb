"""How to serve: addresses, limits and time-outs, validated."""

import os
from ipaddress import ip_address
from pathlib import Path

from pydantic import Field, model_validator

from rdvla.config import Config
from rdvla.errors import ConfigError
from rdvla.horizons import DynamicBuckets, Horizon, make_horizon
from rdvla.wire.protocol import API_KEY_VARIABLE

MIN_KEY_LENGTH = 16


class ServeConfig(Config):
    """Everything about serving that is not the policy.

    Attributes:
        host: address to bind; anything but loopback demands an API key.
        port: TCP port; 0 takes a free one.
        tls_cert: PEM file with the certificate chain; with `tls_key`, the server speaks wss/https only.
        tls_key: PEM file with the private key.
        web: whether to serve the live page at `/` (loopback only).
        instruction: sentence for requests that have none.
        horizon: suggested execution horizon in the replies: a number of actions or a stateless rule's name.
        max_batch: requests decided together, at most; 1 makes every answer independent of its neighbours' timing.
        max_queue: requests that may wait; one more is refused as busy.
        batch_window_ms: how long an idle worker waits for the other recently active clients before it starts.
        deadline_ms: default age at which an answer is no longer sent.
        max_depth: most iterations a request may ask for.
        max_message_bytes: largest accepted message.
        max_connections: open connections, at most.
        connections_per_minute: new connections per client address and minute, at most.
        requests_per_second: per connection, at most.
        handshake_timeout_s: time for a connection to complete its opening handshake.
        read_timeout_s: time for the rest of a message once its first fragment is there.
        send_timeout_s: time for a client to take a reply.
        idle_timeout_s: a connection silent for this long is closed.
        shutdown_grace_s: time for accepted requests to finish when the server stops.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    web: bool = False
    instruction: str | None = None
    horizon: str = "linear_decay"
    max_batch: int = Field(8, ge=1, le=256)
    max_queue: int = Field(64, ge=1, le=4096)
    batch_window_ms: float = Field(5.0, ge=0, le=1000)
    deadline_ms: float = Field(10_000.0, gt=0, le=3_600_000)
    max_depth: int = Field(64, ge=1, le=1024)
    max_message_bytes: int = Field(16 * 2**20, ge=1024, le=2**30)
    max_connections: int = Field(32, ge=1, le=4096)
    connections_per_minute: int = Field(600, ge=1)
    requests_per_second: float = Field(200.0, gt=0)
    handshake_timeout_s: float = Field(5.0, gt=0)
    read_timeout_s: float = Field(10.0, gt=0)
    send_timeout_s: float = Field(10.0, gt=0)
    idle_timeout_s: float = Field(3600.0, gt=0)
    shutdown_grace_s: float = Field(5.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "ServeConfig":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together; give both or neither")
        if self.instruction is not None and not self.instruction.strip():
            raise ValueError("instruction is blank; write a sentence, or leave it out")
        if self.web and not self.is_loopback:
            raise ValueError(
                f"the live page takes no API key and shows the cameras, so it is served on loopback only, not on "
                f"'{self.host}'; keep host 127.0.0.1 and forward the port with 'ssh -L {self.port}:127.0.0.1:"
                f"{self.port} HOST'"
            )
        if isinstance(self.suggested_horizon(), DynamicBuckets):
            raise ValueError("a dynamic horizon remembers earlier decisions and replies are stateless; choose another")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach `host`."""
        return is_loopback(self.host)

    def suggested_horizon(self) -> Horizon:
        """Return the rule behind the `n_action_steps` of the replies."""
        return make_horizon(self.horizon)


def is_loopback(host: str) -> bool:
    """Return whether `host` (a name or an address) is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_api_key(config: ServeConfig, key_file: Path | None) -> str | None:
    """Return the API key from `key_file`, else from the environment variable RDVLA_API_KEY, else None.

    Raises:
        ConfigError: the file cannot be read, the key is too short or not printable ASCII, or there is none
            although `config.host` can be reached from other machines.
    """
    if key_file is not None:
        try:
            key = key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API key file '{key_file}': {error}") from None
        source = f"the file '{key_file}'"
    else:
        key = os.environ.get(API_KEY_VARIABLE, "").strip()
        source = f"the environment variable {API_KEY_VARIABLE}"
        if not key and config.is_loopback:
            return None
    if not key:
        raise ConfigError(
            f"host '{config.host}' can be reached from other machines, so an API key is needed: put one of at least "
            f"{MIN_KEY_LENGTH} characters in {API_KEY_VARIABLE} or in a file named by --api-key-file."
            if key_file is None
            else f"{source} is empty; it must hold the API key."
        )
    if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the API key in {source} must have at least {MIN_KEY_LENGTH} printable ASCII characters.")
    return key
