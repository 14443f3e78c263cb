"""One worker thread that owns the policy, a bounded queue before it, and batches out of what arrived together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from rdvla.errors import RDVLAError
from rdvla.policy import Ask, Policy
from rdvla.server.metrics import Metrics
from rdvla.types import ActionChunk, Observation
from rdvla.wire.protocol import Busy, DeadlineMissed, RequestOptions, RequestRefused, ShuttingDown

ACTIVE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A decision and how it came about.

    Attributes:
        chunk: what the policy decided.
        queue_ms: how long the request waited.
        infer_ms: how long the policy took, for the whole batch.
        batch_size: how many requests were decided together.
    """

    chunk: ActionChunk
    queue_ms: float
    infer_ms: float
    batch_size: int


@dataclass(eq=False)
class _Job:
    observation: Observation
    options: RequestOptions
    client: Hashable
    arrived: float
    deadline: float
    future: "Future[Answer]" = field(default_factory=Future)

    @property
    def group(self) -> Ask:
        return self.options.ask.shared


class Batcher:
    """Runs a policy in a thread of its own. Requests that agree in all but seed, carry and step are decided together.

    The worker takes whatever is waiting, up to `max_batch`. When it is idle and a request arrives while other
    clients were active within the last second, it first waits up to `window_s` for them: a lone client never waits.
    """

    def __init__(self, policy: Policy, metrics: Metrics, *, max_batch: int, max_queue: int, window_s: float) -> None:
        """Prepare to run `policy`; `start` starts the thread."""
        self._policy = policy
        self._metrics = metrics
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._window_s = window_s
        self._waiting: deque[_Job] = deque()
        self._last_seen: dict[Hashable, float] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="rdvla-policy", daemon=True)

    def start(self) -> None:
        """Start the worker thread."""
        self._thread.start()

    def submit(
        self, observation: Observation, options: RequestOptions, *, client: Hashable, deadline: float
    ) -> "Future[Answer]":
        """Queue a request; never blocks.

        Args:
            observation: what the robot sees.
            options: how to decide.
            client: who asks; clients seen within the last second are waited for.
            deadline: `time.monotonic()` after which the answer is worthless; the policy is not asked then.

        Returns:
            A future with the answer; cancelling it before the policy starts removes the request.

        Raises:
            Busy: the queue is full.
            ShuttingDown: the server is stopping.
        """
        job = _Job(observation, options, client, time.monotonic(), deadline)
        with self._changed:
            if self._stopping:
                raise ShuttingDown("this server is stopping; connect to its successor.")
            if len(self._waiting) >= self._max_queue:
                self._drop_cancelled()
            if len(self._waiting) >= self._max_queue:
                raise Busy(f"{self._max_queue} requests are waiting, the most this server queues; try again.")
            self._waiting.append(job)
            self._last_seen[client] = job.arrived
            self._metrics.queue.set(len(self._waiting))
            self._changed.notify()
        return job.future

    def stop(self, grace_s: float) -> None:
        """Take no more requests, finish the waiting ones within `grace_s`, refuse the rest."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(grace_s)
        with self._changed:
            for job in self._waiting:
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(ShuttingDown("this server stopped before it could decide."))
            self._waiting.clear()
            self._metrics.queue.set(0)

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            if batch:
                self._decide(batch)

    def _take(self) -> list[_Job] | None:
        """Wait for requests and return the next batch (empty if all of it expired), or None to end the thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if not self._waiting:
                return None
            if not self._stopping and len(self._waiting) < self._expected():
                self._changed.wait_for(lambda: self._stopping or len(self._waiting) >= self._expected(), self._window_s)
            if not self._waiting:  # cancelled, or refused by `stop`
                return []
            group = self._waiting[0].group
            taken = [job for job in self._waiting if job.group == group][: self._max_batch]
            for job in taken:
                self._waiting.remove(job)
            self._metrics.queue.set(len(self._waiting))
        return [job for job in taken if self._is_wanted(job)]

    def _expected(self) -> int:
        """Return how many requests to wait for: one per client seen lately, at most a batch."""
        now = time.monotonic()
        self._last_seen = {client: seen for client, seen in self._last_seen.items() if now - seen < ACTIVE_S}
        return min(len(self._last_seen), self._max_batch)

    def _drop_cancelled(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.future.cancelled())

    @staticmethod
    def _is_wanted(job: _Job) -> bool:
        if not job.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() < job.deadline:
            return True
        waited = (time.monotonic() - job.arrived) * 1000
        job.future.set_exception(DeadlineMissed(f"the request waited {waited:.0f} ms, past its deadline."))
        return False

    def _decide(self, jobs: list[_Job]) -> None:
        started = time.monotonic()
        try:
            chunks = self._infer(jobs)
        except RDVLAError as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one bad request must not spoil its neighbours' answers
                self._decide([job])
            return
        except Exception:  # noqa: BLE001 - whatever a policy raises becomes a typed error, and the worker lives on
            _log.exception("the policy failed on a batch of %d", len(jobs))
            for job in jobs:
                job.future.set_exception(RequestRefused("the policy failed; the server's log says why."))
            return
        elapsed = time.monotonic() - started
        self._metrics.batch_size.observe(len(jobs))
        self._metrics.inference.observe(elapsed)
        for job, chunk in zip(jobs, chunks, strict=True):
            waited = started - job.arrived
            self._metrics.waiting.observe(waited)
            self._metrics.recurrences.observe(chunk.num_recurrences)
            job.future.set_result(Answer(chunk, waited * 1000, elapsed * 1000, len(jobs)))

    def _infer(self, jobs: list[_Job]) -> list[ActionChunk]:
        if len(jobs) == 1:
            return [self._policy.infer(jobs[0].observation, jobs[0].options.ask)]
        chunks = self._policy.infer_batch([job.observation for job in jobs], [job.options.ask for job in jobs])
        if len(chunks) != len(jobs):
            raise RuntimeError(f"the policy answered {len(chunks)} of {len(jobs)} observations")
        return chunks
