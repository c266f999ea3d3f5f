"""The parent's side of the worker process: one request at a time, a deadline that holds, and a kill that can not miss.

A worker that is late is killed with SIGKILL through its pidfd, so that no other process can be hit; one that dies is
replaced and the request asked once more. A worker is also replaced after `MAX_TASKS` requests, since SymPy's caches
grow. Calls may come from any thread: a lock keeps them apart, and the worker's life is tied to the pipe and not to the
thread that started it (a death signal would fire when that thread ends).
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

Outcome = Literal["equal", "different", "undecided", "timeout", "error"]

TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
QUEUE_TIMEOUT_S = 300.0
MAX_TASKS = 500
_MAX_REPLY_BYTES = 1 << 16
_LENGTH = struct.Struct(">I")
_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from reward.math.child import main; main()"
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME")


class Reply(NamedTuple):
    """What came of a request."""

    outcome: Outcome
    why: str = ""


class WorkerDiedError(RuntimeError):
    """The worker process ended, or answered something that it never answers."""


class WorkerLateError(RuntimeError):
    """The deadline passed without an answer."""


class MathProcess:
    """A worker process that starts with the first request and is replaced when it is late, dead or worn out."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S, max_tasks: int = MAX_TASKS) -> None:
        self._timeout_s = timeout_s
        self._max_tasks = max_tasks
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def __reduce__(self) -> Any:
        """Another process gets an own worker."""
        return _rebuilt, (self._timeout_s, self._max_tasks)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, if one is running."""
        return self._worker.pid if self._worker is not None else None

    def ask(self, gold: str, answer: str) -> Reply:
        """Whether two answers are equal. A worker that dies is replaced once; a late one is not asked again."""
        if not self._lock.acquire(timeout=QUEUE_TIMEOUT_S):
            return Reply("error", f"the math worker was busy for {QUEUE_TIMEOUT_S:g} s")
        try:
            return self._ask(gold, answer)
        finally:
            self._lock.release()

    def start(self) -> None:
        """Start the worker if none is running; WorkerDiedError says why it did not."""
        with self._lock:
            try:
                self._worker_of_this_process()
            except OSError as error:
                raise WorkerDiedError(f"the math worker did not start ({error})") from error

    def close(self) -> None:
        """End the worker; the next request starts another one."""
        with self._lock:
            self._drop()

    def _ask(self, gold: str, answer: str) -> Reply:
        why = ""
        for _ in range(2):
            try:
                return self._worker_of_this_process().ask(gold, answer, self._timeout_s)
            except WorkerLateError as error:
                self._drop()
                return Reply("timeout", str(error))
            except (WorkerDiedError, OSError) as error:
                self._drop()
                why = str(error)
        return Reply("error", why)

    def _worker_of_this_process(self) -> _Worker:
        worker = self._worker
        if worker is not None and (worker.owner != os.getpid() or worker.num_tasks >= self._max_tasks):
            self._drop()
            worker = None
        if worker is None:
            worker = self._worker = _Worker()
        return worker

    def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()


def _rebuilt(timeout_s: float, max_tasks: int) -> MathProcess:
    return MathProcess(timeout_s=timeout_s, max_tasks=max_tasks)


class _Worker:
    """One process with its pipes; WorkerDiedError or WorkerLateError where it fails."""

    def __init__(self) -> None:
        path = [_ROOT, *(os.path.abspath(entry) for entry in sys.path)]
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        self.owner = os.getpid()
        self.num_tasks = 0
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
        self._process = process
        self._pidfd = _open_pidfd(process.pid)
        self._finalizer = weakref.finalize(self, _end, process, self._pidfd, self.owner)
        try:
            self._receive(time.monotonic() + START_TIMEOUT_S)
        except (WorkerDiedError, WorkerLateError) as error:
            self.stop()
            raise WorkerDiedError(f"the math worker did not start ({error})") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, gold: str, answer: str, timeout_s: float) -> Reply:
        self.num_tasks += 1
        request = {"id": self.num_tasks, "gold": gold, "answer": answer, "seconds": timeout_s}
        deadline = time.monotonic() + timeout_s
        self._send(request)
        while True:
            message = self._receive(deadline)
            if message.get("id") != self.num_tasks:
                raise WorkerDiedError("an answer to another request")
            if "loading" in message:
                deadline = time.monotonic() + (START_TIMEOUT_S if message["loading"] else timeout_s)
            elif message.get("outcome") in ("equal", "different", "undecided"):
                return Reply(message["outcome"], str(message["why"]))
            else:
                raise WorkerDiedError(str(message.get("why")))

    def stop(self) -> None:
        """Kill the process and wait for its end."""
        self._finalizer()

    def _send(self, request: dict[str, Any]) -> None:
        body = json.dumps(request).encode()
        assert self._process.stdin is not None
        # The worker is idle and a request is shorter than a pipe's buffer, so this can not block.
        self._process.stdin.write(_LENGTH.pack(len(body)) + body)

    def _receive(self, deadline: float) -> dict[str, Any]:
        head = self._read(_LENGTH.size, deadline)
        (length,) = _LENGTH.unpack(head)
        if length > _MAX_REPLY_BYTES:
            raise WorkerDiedError(f"an answer of {length} bytes")
        try:
            message = json.loads(self._read(length, deadline))
        except ValueError as error:
            raise WorkerDiedError(f"an answer that is not JSON ({error})") from error
        return message if isinstance(message, dict) else {}

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        source = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(source, select.POLLIN)
        data = b""
        while len(data) < count:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise WorkerLateError("the comparison did not end in time")
            piece = os.read(source, count - len(data))
            if not piece:
                raise WorkerDiedError("the math worker died")
            data += piece
        return data


def _open_pidfd(pid: int) -> int | None:
    """A handle on the process itself; None on a kernel without them (the id of a child is its own until we wait)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _end(process: subprocess.Popen[bytes], pidfd: int | None, owner: int) -> None:
    """Kill, close, wait. In a forked copy of the owner only the copies of the descriptors are closed."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if os.getpid() == owner and process.poll() is None:
        if pidfd is None:
            process.kill()
        else:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        process.wait()
    if pidfd is not None:
        os.close(pidfd)
