"""Two ways to run a server: in a thread beside something else, and alone until a signal."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rdvla.policy import Policy
from rdvla.server.config import ServeConfig
from rdvla.server.live import LiveFeed
from rdvla.server.server import PolicyServer
from rdvla.stops import StopRule


@contextmanager
def serving(
    policy: Policy,
    config: ServeConfig,
    *,
    api_key: str | None = None,
    live: LiveFeed | None = None,
    default_stop: StopRule | None = None,
    checkpoint: str = "",
) -> Iterator[PolicyServer]:
    """Serve `policy` while the block runs; on entry the server is ready, on exit it has stopped.

    Args:
        policy: what decides.
        config: port 0 takes a free port; ask the server for its `url`.
        api_key: asked of every client.
        live: the live page's feed.
        default_stop: for requests that do not say when to stop.
        checkpoint: digest of what the policy was loaded from.

    Raises:
        ServeError: the address cannot be bound, or the warm-up decision failed.
    """
    server = PolicyServer(policy, config, api_key=api_key, live=live, default_stop=default_stop, checkpoint=checkpoint)
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


async def serve_until_signal(server: PolicyServer, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then stop gracefully; a second signal ends the process at once.

    Raises:
        ServeError: the address cannot be bound, or the warm-up decision failed.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        stopping.set()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop)
    await server.start()
    on_ready()
    await stopping.wait()
    await server.stop()
