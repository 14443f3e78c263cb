"""What keeps tests from depending on how busy the machine is, and with what."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 600.0  # for what must happen: only a test that would hang comes to it


def eventually(condition: Callable[[], bool], what: str = "what was waited for") -> None:
    """Return once `condition()` is true; fail after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.01)


@contextmanager
def kept_port() -> Iterator[int]:
    """Yield a port that nobody else is given meanwhile, whether a server listens there or not."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, so that one may listen there
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
