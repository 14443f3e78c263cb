"""A server in a thread of its own, for programs that do something else besides: `rdvla play`, tests, notebooks."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rdvla.policy import Policy
from rdvla.serve.config import ServeConfig
from rdvla.serve.live import LiveFeed
from rdvla.serve.server import PolicyServer


@contextmanager
def serving(
    policy: Policy, config: ServeConfig, *, api_key: str | None = None, live: LiveFeed | None = None
) -> Iterator[PolicyServer]:
    """Serve `policy` while the block runs; on entry the server is ready, on exit it has stopped.

    Args:
        policy: what decides.
        config: port 0 takes a free port; ask the server for its `url`.
        api_key: asked of every client.
        live: the live page's feed.

    Raises:
        ServeError: the address cannot be bound, or the warm-up decision failed.
    """
    server = PolicyServer(policy, config, api_key=api_key, live=live)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="rdvla-server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
