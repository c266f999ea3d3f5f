"""The untrusted program itself, in the process that the server has forked and confined for it."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

CHANNEL_IN, CHANNEL_OUT = 3, 4
MEMORY_STATUS = 86
"""Exit status of a program that ended with MemoryError; chooses a word, never a verdict."""
_FRAMES_ABOVE = 2
"""Frames of this file above the program's own, left out of its traceback."""


def run_program(source: bytes) -> NoReturn:
    """Run the text as `__main__` and leave as an interpreter would: threads joined, exit functions run, flushed."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, CHANNEL_IN=CHANNEL_IN, CHANNEL_OUT=CHANNEL_OUT)
    sys.modules["__main__"] = main
    sys.argv = ["main.py"]
    status = _status_of(lambda: exec(compile(source, "main.py", "exec", dont_inherit=True), main.__dict__))
    status = _status_of(join_threads) or status
    status = _status_of(atexit._run_exitfuncs) or status
    for stream in (sys.stdout, sys.stderr):
        status = _status_of(stream.flush) or status
    os._exit(status)


def join_threads() -> None:
    """Wait for the threads that are not daemons."""
    threading = sys.modules["threading"]
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _status_of(step: Callable[[], Any]) -> int:
    """Exit status after a step of the program; its exception is printed."""
    try:
        step()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        with contextlib.suppress(BaseException):
            sys.stderr.write(f"{end.code}\n")
        return 1
    except MemoryError:
        with contextlib.suppress(BaseException):
            os.write(2, b"MemoryError\n")
        return MEMORY_STATUS
    except BaseException as error:  # noqa: BLE001 - whatever the program raises ends it, as in an interpreter
        with contextlib.suppress(BaseException):
            below = error.__traceback__
            for _ in range(_FRAMES_ABOVE):
                below = below and below.tb_next
            traceback.print_exception(type(error), error, below)
        return 1
    return 0
