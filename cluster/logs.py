"""Log files of a run: one per process, plain lines without colour, all in the folder of the attempt."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def add_log_file(log_dir: Path | None, name: str) -> logging.Handler | None:
    """Sends this process's log to `<log_dir>/<name>.log` too, until the handler is removed.

    The folder is made by the driver. A process that does not see it (an actor on another machine without a shared file
    system) keeps the log that Ray collects, and gets no handler.
    """
    if log_dir is None or not log_dir.is_dir():
        return None
    handler = logging.FileHandler(log_dir / f"{name}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    if root.level > logging.INFO:
        root.setLevel(logging.INFO)
    return handler


@contextmanager
def log_file(log_dir: Path, name: str) -> Iterator[None]:
    """The log file of a process that outlives the run."""
    handler = add_log_file(log_dir, name)
    try:
        yield
    finally:
        if handler is not None:
            logging.getLogger().removeHandler(handler)
            handler.close()


def tail(path: Path, num_lines: int) -> str:
    """The last lines of a log; empty where this machine does not have the file."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=num_lines)).rstrip()
