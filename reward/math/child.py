"""The worker process: reads one pair of answers at a time, says whether they are equal, and ends with its parent.

Frames in both directions are a length (4 bytes, big endian) and JSON. In: `{"id", "gold", "answer", "seconds"}`. Out:
`{"id", "outcome", "why"}`, and before it `{"id", "loading": true}` where the first answer that needs Math-Verify waits
for its import; the parent then starts the clock again.

The process ends at the end of its input, when its parent has gone, and by a kernel timer some time after a deadline
that the parent did not live to enforce. It is started by exec with no environment of the parent's, has one thread, and
its memory is limited.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import struct
import sys
from typing import Any

from reward.math.compare import compare
from reward.math.symbolic import MathVerify, is_mathematics
from reward.math.tokens import AmbiguousError, UnreadableError

MEMORY_BYTES = 1_500_000_000
PARENT_CHECK_S = 5.0
GRACE_S = 5.0
MAX_FRAME_BYTES = 1 << 16
_LENGTH = struct.Struct(">I")


def main() -> None:
    """Serve pairs until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    parent = os.getppid()
    source, sink = sys.stdin.fileno(), sys.stdout.fileno()
    judge = Judge(sink)
    _write(sink, {"ready": True})
    while (request := _next_request(source, parent)) is not None:
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + GRACE_S)
        outcome, why = judge.outcome(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(sink, {"id": request["id"], "outcome": outcome, "why": why})
        if outcome == "error":
            return


class Judge:
    """The comparison, with Math-Verify loaded when it is first needed."""

    def __init__(self, sink: int) -> None:
        self._sink = sink
        self._math_verify: MathVerify | None = None

    def outcome(self, request: dict[str, Any]) -> tuple[str, str]:
        """`equal`, `different`, `undecided` or `error`, and why."""
        try:
            return self._outcome(request)
        except MemoryError:
            return "error", "the memory limit"
        except Exception as error:  # noqa: BLE001 - the edge of a grader: an exception becomes a typed failure
            return "error", f"{type(error).__name__}: {error}"[:300]

    def _outcome(self, request: dict[str, Any]) -> tuple[str, str]:
        gold, answer = request["gold"], request["answer"]
        try:
            result = compare(gold, answer)
        except AmbiguousError as error:
            return "undecided", str(error)
        except UnreadableError as error:
            if is_mathematics(gold) and is_mathematics(answer) and self._symbolic(request, gold, answer):
                return "equal", "Math-Verify, confirmed"
            return "undecided", str(error)
        return result, "not comparable" if result == "undecided" else ""

    def _symbolic(self, request: dict[str, Any], gold: str, answer: str) -> bool:
        if self._math_verify is None:
            _write(self._sink, {"id": request["id"], "loading": True})
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._math_verify = MathVerify()
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + GRACE_S)
            _write(self._sink, {"id": request["id"], "loading": False})
        try:
            return self._math_verify.confirmed(gold, answer)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever SymPy makes of strange text: it did not confirm
            return False


def _next_request(source: int, parent: int) -> dict[str, Any] | None:
    """The next frame; None at the end of the input, or once the parent has gone."""
    while not select.select([source], [], [], PARENT_CHECK_S)[0]:
        if os.getppid() != parent:
            return None
    head = _read(source, _LENGTH.size)
    body = _read(source, _LENGTH.unpack(head)[0]) if head else b""
    return json.loads(body) if body else None


def _read(source: int, count: int) -> bytes:
    """So many bytes; none at the end of the input."""
    data = b""
    while len(data) < count:
        piece = os.read(source, count - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _write(sink: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    data = memoryview(_LENGTH.pack(len(body)) + body)
    while data:
        data = data[os.write(sink, data) :]
