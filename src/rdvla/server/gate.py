"""Who may connect, and how often: API key, browser origins, connection limits, rates."""

import hmac
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request

from rdvla.server.config import ServeConfig, is_loopback

MAX_TRACKED_ADDRESSES = 4096


class TokenBucket:
    """Allows `rate` events per second on average and `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with a full bucket of `burst` tokens."""
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._updated = burst, clock()

    def take(self) -> float:
        """Take one token and return 0, or take none and return the seconds until there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Gate:
    """Decides about every opening handshake before anything else is done for it."""

    def __init__(self, config: ServeConfig, api_key: str | None) -> None:
        """Ask for `api_key` on everything but the health check, if it is not None."""
        self._config = config
        self._expected = None if api_key is None else f"Api-Key {api_key}".encode()
        self._arrivals: dict[str, TokenBucket] = {}

    def check(self, request: Request, address: str, open_connections: int) -> tuple[HTTPStatus, str] | None:
        """Return why `request` is refused (status and explanation), or None to let it in."""
        if not self._origin_is_ours(request.headers):
            return HTTPStatus.FORBIDDEN, "requests from other web sites are not accepted"
        if not self._is_authorised(request.headers):
            return HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key ...'"
        if self._arrived(address) > 0:
            return HTTPStatus.TOO_MANY_REQUESTS, "too many new connections; slow down"
        if open_connections >= self._config.max_connections:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"all {open_connections} connections are taken; try again later"
        return None

    def _is_authorised(self, headers: Headers) -> bool:
        if self._expected is None:
            return True
        values = headers.get_all("Authorization")
        return len(values) == 1 and hmac.compare_digest(values[0].encode("utf-8", "surrogateescape"), self._expected)

    def _origin_is_ours(self, headers: Headers) -> bool:
        """Refuse browsers on foreign pages: an Origin must name the very host and port it talks to.

        On loopback that host must also be a loopback name, so that a foreign name which resolves to this machine
        (DNS rebinding) is refused too. Programs send no Origin.
        """
        origins = headers.get_all("Origin")
        if not origins:
            return True
        hosts = headers.get_all("Host")
        if len(origins) != 1 or len(hosts) != 1:
            return False
        try:
            origin, host = urlsplit(origins[0]), urlsplit(f"//{hosts[0]}")
            same = origin.netloc.lower() == host.netloc.lower() and origin.scheme in ("http", "https")
            return same and (not self._config.is_loopback or is_loopback(host.hostname or ""))
        except ValueError:
            return False

    def _arrived(self, address: str) -> float:
        per_minute = self._config.connections_per_minute
        bucket = self._arrivals.get(address)
        if bucket is None:
            if len(self._arrivals) >= MAX_TRACKED_ADDRESSES:
                self._arrivals.clear()
            bucket = self._arrivals[address] = TokenBucket(per_minute / 60, max(1.0, per_minute / 4))
        return bucket.take()
