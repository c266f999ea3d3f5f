"""One background thread that sends jobs to a store which may be slow, broken or gone.

States of a job: *pending* (waiting, in order) -> *sent*; or, after two failures, *aside* until the last try; or *left
out* at once when `max_pending` jobs wait already. After a failure the thread rests for `pause_s` and takes new jobs in
the meantime; the caller never waits for the store except in `start` and `close`, both with a deadline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_ATTEMPTS_BEFORE_ASIDE = 2
_FAILURES_THAT_END_THE_LAST_TRY = 3


@dataclass(slots=True, eq=False)
class _Job:
    what: str
    send: Callable[[], None]
    num_failures: int = 0


class Uploads:
    """A bounded queue of jobs and the thread that sends them in order.

    `open_store` runs before the first job and again until it succeeds. Exceptions listed in `errors` are failures of
    the store: counted in `num_failures`, and the first one is a warning. Any other exception is our own mistake and
    ends the thread with its traceback, never the run.
    """

    def __init__(
        self,
        open_store: Callable[[], None],
        *,
        errors: tuple[type[Exception], ...],
        max_pending: int = 4096,
        pause_s: float = 30.0,
    ) -> None:
        self.num_failures = 0
        self._open_store = open_store
        self._errors = errors
        self._max_pending = max_pending
        self._pause_s = pause_s
        self._pending: deque[_Job] = deque()
        self._aside: list[_Job] = []
        self._changed = threading.Condition()
        self._opened = threading.Event()
        self._tried_to_open = threading.Event()
        self._rest_until = 0.0
        self._closing = False
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="tracking-uploads", daemon=True)

    def start(self, timeout_s: float) -> bool:
        """Open the store in the thread; whether it was open before the deadline. The thread goes on trying if not."""
        self._thread.start()
        if not self._tried_to_open.wait(timeout_s):
            logger.warning("The tracking store has not answered for %.0f s; the run starts without it.", timeout_s)
        return self._opened.is_set()

    def put(self, what: str, send: Callable[[], None], *, force: bool = False, only_latest: bool = False) -> bool:
        """Queue a job; False where the queue is full and the job was left out.

        `force` passes the bound. With `only_latest` the job takes the place of waiting ones of the same name.
        """
        with self._changed:
            if only_latest:
                self._pending = deque(job for job in self._pending if job.what != what)
            if len(self._pending) >= self._max_pending and not force:
                return False
            self._pending.append(_Job(what, send))
            self._changed.notify()
        return True

    def close(self, timeout_s: float) -> int:
        """Send what is left, once, before the deadline; the number of jobs that the store did not take."""
        with self._changed:
            self._closing = True
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            return len(self._pending) + len(self._aside)

    def _work(self) -> None:
        while not self._opened.is_set() and not self._closing:
            self._try(_Job("the run", self._open))
            self._tried_to_open.set()
            self._rest()
        while (job := self._next()) is not None:
            self._deliver(job)
        if self._opened.is_set() or self._try(_Job("the run", self._open)):
            self._last_try()

    def _open(self) -> None:
        self._open_store()
        self._opened.set()

    def _rest(self) -> None:
        """Wait until the pause after a failure is over or the run ends."""
        with self._changed:
            while not self._closing and (rest_s := self._rest_until - time.monotonic()) > 0:
                self._changed.wait(rest_s)

    def _next(self) -> _Job | None:
        """The first pending job, once there is one and no pause; None when the run ends."""
        self._rest()
        with self._changed:
            self._changed.wait_for(lambda: self._closing or bool(self._pending))
            return None if self._closing else self._pending[0]

    def _deliver(self, job: _Job) -> None:
        sent = self._try(job)
        with self._changed:
            if job not in self._pending:  # a newer one has taken its place while it was under way
                return
            if sent or job.num_failures >= _ATTEMPTS_BEFORE_ASIDE:
                self._pending.remove(job)
            if not sent and job.num_failures >= _ATTEMPTS_BEFORE_ASIDE:
                self._aside.append(job)

    def _try(self, job: _Job) -> bool:
        try:
            job.send()
        except self._errors as error:
            job.num_failures += 1
            self._note_failure(job, error)
            return False
        return True

    def _note_failure(self, job: _Job, error: Exception) -> None:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        message = "The tracking store did not take %s (%s: %.300s)."
        if self.num_failures == 0:
            message += " Training goes on; the run folder has everything, and the upload is tried again."
        level = logging.WARNING if self.num_failures == 0 else logging.DEBUG
        logger.log(level, message, job.what, type(error).__name__, first_line)
        self.num_failures += 1
        self._rest_until = time.monotonic() + self._pause_s

    def _last_try(self) -> None:
        """Every job once more, in order, those put aside first; ends early where the store is plainly gone."""
        with self._changed:
            self._pending.extendleft(reversed(self._aside))
            self._aside.clear()
        failures_in_a_row = 0
        while self._pending and time.monotonic() < self._deadline:
            job = self._pending[0]
            sent = self._try(job)
            failures_in_a_row = 0 if sent else failures_in_a_row + 1
            with self._changed:
                self._pending.popleft()
                if not sent:
                    self._aside.append(job)
            if failures_in_a_row >= _FAILURES_THAT_END_THE_LAST_TRY:
                return
