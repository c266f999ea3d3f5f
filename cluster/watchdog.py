"""Nothing has ended for too long: say what everybody waits for, and end the run with an error.

Every wait of a run has a deadline of its own, so this is the net under them: for a deadline that is far too long, a
library that hangs, a mistake of ours. A thread looks at a count of what has ended (steps, calls of the pools). If it
stands still for `timeout_s`, `stall.txt` in the attempt's log folder gets the state of every worker and the stack of
every thread of the driver, and the main thread is interrupted by SIGUSR1 (SIGINT is ignored in a process that a script
starts in the background); should that not free it within `grace_s`, the process ends with status 70.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cluster.errors import RunError

logger = logging.getLogger(__name__)

STATUS = 70
DUMP_FILE = "stall.txt"


class StallError(RunError):
    """A run in which nothing ended any more."""


class _Interrupted(BaseException):
    """Raised in the main thread wherever it stands."""


@contextmanager
def watch(
    progress: Callable[[], Hashable],
    describe: Callable[[], Sequence[str]],
    *,
    timeout_s: float,
    folder: Path,
    grace_s: float = 60.0,
) -> Iterator[None]:
    """Watches over the body; raises `StallError` out of it when `progress()` has not changed for `timeout_s`.

    A body outside the main thread can not be interrupted: its stall ends the process.
    """
    done = threading.Event()

    def look() -> None:
        last, since = progress(), time.monotonic()
        while not done.wait(min(timeout_s / 4, 5.0)):
            now = progress()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > timeout_s:
                _dump(folder / DUMP_FILE, describe(), timeout_s)
                interrupt()
                if not done.wait(grace_s):
                    logger.critical("the driver does not react; it ends with status %d", STATUS)
                    os._exit(STATUS)
                return

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    try:
        with _interruptible(done) as interrupt:
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join(timeout=10)
    except _Interrupted as error:
        lines = "\n".join(f"  {line}" for line in describe())
        raise StallError(
            f"nothing has ended for {timeout_s:g} s; what everybody waits for:\n{lines}\n"
            f"Stacks of the driver are in {folder / DUMP_FILE}. Go on with --resume; a longer deadline is "
            "cluster.stall_timeout_s"
        ) from error


@contextmanager
def _interruptible(done: threading.Event) -> Iterator[Callable[[], None]]:
    """A call that raises `_Interrupted` in the main thread, if that runs the body and is not `done`."""
    if threading.current_thread() is not (main := threading.main_thread()):
        yield lambda: None
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if not done.is_set():
            raise _Interrupted

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        # A signal, because it also wakes a thread that waits for a lock.
        yield lambda: signal.pthread_kill(main.ident or 0, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def _dump(path: Path, lines: Sequence[str], timeout_s: float) -> None:
    text = "".join(f"{line}\n" for line in lines)
    logger.critical("nothing has ended for %g s:\n%s", timeout_s, text)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError as error:  # the log has the same
        logger.error("%s could not be written: %s", path, error)
