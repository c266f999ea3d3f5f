"""SIGTERM as a request: spot machines, `ray job stop` and Kubernetes send it some seconds before they kill.

The handler only notes the request. The loop sees it between two turns of gathering (`check`), where nothing is half
done, writes a checkpoint of the last whole step and ends with status 143. A second SIGTERM ends the process at once.
Install it after `ray.init()`, which puts a handler of its own in place.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

STATUS = 128 + signal.SIGTERM


class StopRequested(SystemExit):
    """The run was told to stop, and did so in good order."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class StopSignal:
    """Listens for SIGTERM in its body."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def check(self) -> None:
        """Raises `StopRequested` if the process was told to stop."""
        if self.requested:
            raise StopRequested

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            os._exit(STATUS)
        logger.warning("SIGTERM: a checkpoint is written, then the run ends; go on with --resume")
        self.requested = True
