"""Plain HTTP on the websocket port: health, metrics, the live page, and the refusals."""

import asyncio
import base64
import hashlib
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from rdvla.server.gate import Gate
from rdvla.server.metrics import CONTENT_TYPE, Metrics
from rdvla.stops import rules


@dataclass(frozen=True)
class Page:
    """The live page as one document, and the policy that lets a browser run nothing but what is in it."""

    body: bytes
    policy: str

    @classmethod
    def load(cls) -> "Page":
        """Put the page together from its parts."""
        folder = files("rdvla.server").joinpath("page")
        text = folder.joinpath("page.html").read_text(encoding="utf-8")
        options = (
            f'<option value="{name}">{escape(spec.sentence)} ({name})</option>' for name, spec in rules().items()
        )
        text = text.replace("<!--{rules}-->", "\n        ".join(options))
        hashes: dict[str, list[str]] = {"js": [], "css": []}
        for name in ("page.css", "charts.js", "page.js"):
            part = folder.joinpath(name).read_text(encoding="utf-8")
            text = text.replace("/*{" + name + "}*/", part)
            digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode("ascii")
            hashes[name.rpartition(".")[2]].append(f"'sha256-{digest}'")
        policy = (
            f"default-src 'none'; script-src {' '.join(hashes['js'])}; style-src {' '.join(hashes['css'])}; "
            "img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        return cls(text.encode(), policy)


class Router:
    """Answers or admits every opening handshake."""

    def __init__(self, gate: Gate, metrics: Metrics, *, page: bool) -> None:
        """Serve the live page at `/` if `page`."""
        self.ready = False
        self._gate = gate
        self._metrics = metrics
        self._page = Page.load() if page else None

    def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the HTTP answer to `request`, or None to let it become a websocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return _text(HTTPStatus.OK, "OK\n") if self.ready else _text(HTTPStatus.SERVICE_UNAVAILABLE, "not ready\n")
        address = connection.remote_address[0] if connection.remote_address else "unknown"
        refusal = self._gate.check(request, address, len(connection.server.connections))
        if refusal is not None:
            status, explanation = refusal
            self._metrics.refused.labels(status.phrase.lower().replace(" ", "_")).inc()
            return _text(status, explanation + "\n")
        if path == "/metrics":
            return _response(HTTPStatus.OK, self._metrics.text(), CONTENT_TYPE)
        if "websocket" in request.headers.get("Upgrade", "").lower():
            return None  # also before the warm-up: stock clients do not retry, so their requests wait in the queue
        if path == "/" and self._page is not None:
            policy = {"Content-Security-Policy": self._page.policy}
            return _response(HTTPStatus.OK, self._page.body, "text/html; charset=utf-8", policy)
        if path == "/":
            return _text(HTTPStatus.UPGRADE_REQUIRED, "This is a policy server; connect with a websocket.\n")
        return _text(HTTPStatus.NOT_FOUND, "Here are /healthz, /metrics and, on any path, a websocket.\n")

    def connection_class(self, limit: int) -> type[ServerConnection]:
        """Return a connection class that drops TCP connections beyond `limit`, before reading a byte of theirs."""
        metrics, transports = self._metrics, set[asyncio.BaseTransport]()

        class LimitedConnection(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                transports.add(transport)
                if len(transports) > limit:
                    metrics.refused.labels("too_many_sockets").inc()
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                transports.discard(self.transport)
                super().connection_lost(exc)

        return LimitedConnection


def _text(status: HTTPStatus, body: str) -> Response:
    return _response(status, body.encode(), "text/plain; charset=utf-8")


def _response(status: HTTPStatus, body: bytes, content_type: str, extra: dict[str, Any] | None = None) -> Response:
    headers = Headers(
        {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            **(extra or {}),
        }
    )
    return Response(status.value, status.phrase, headers, body)
