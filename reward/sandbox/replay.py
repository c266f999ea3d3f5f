"""Conversations with a sandbox that only runs a text to its end.

Every answer is the result of a run with all frames sent so far: the program is started again and again, and of each run
the frames that have not been seen yet are taken. Right for programs that answer the same questions the same way, which
the runner helps by fixing their randomness; slow for long conversations.
"""

from __future__ import annotations

import base64
import functools
import json
import secrets
import signal
import time
from abc import abstractmethod
from dataclasses import dataclass
from importlib.resources import files
from typing import NoReturn

from reward.sandbox.interface import Job, Sandbox
from reward.sandbox.limits import check_frame, check_source, rlimits
from reward.sandbox.program import MEMORY_STATUS
from reward.sandbox.records import FRAME_HEADER, JobEnd, JobEnded, Limits, pack_frame

_MB = 1 << 20
_MAX_FRAMES_BYTES = 16 * _MB
MAX_PRINTED_BYTES = 32 * _MB
"""What one run may print at most: its frames and its output, in base64."""


class ReplaySandbox(Sandbox):
    """A slot that has no state between runs."""

    replays = True

    def start(self, child_source: str, *, limits: Limits, stdin: bytes = b"") -> ReplayJob:
        """See `Sandbox`."""
        check_source(child_source, limits)
        return ReplayJob(self, child_source, limits, stdin)

    @abstractmethod
    def execute(self, program: str, *, wall_s: float) -> bytes:
        """What a program printed. SandboxError if it did not come to run."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one run gave."""

    end: JobEnd
    detail: str
    frames: tuple[bytes, ...]
    stdout: bytes = b""
    stderr: bytes = b""


class ReplayJob(Job):
    """A program that is run again for each answer."""

    def __init__(self, sandbox: ReplaySandbox, child_source: str, limits: Limits, stdin: bytes) -> None:
        self._sandbox = sandbox
        self._source = child_source
        self._limits = limits
        self._stdin = stdin
        self._deadline = time.monotonic() + limits.wall_s
        self._seed = secrets.token_hex(16)
        self._sent = bytearray()
        self._num_taken = 0
        self._outcome: _Outcome | None = None
        self._is_over = False

    def send(self, frame: bytes) -> None:
        """See `Job`; ValueError for a frame above the limit."""
        check_frame(frame, self._limits)
        if self._is_over:
            self._raise_end()
        self._sent += pack_frame(frame)
        self._outcome = None

    def receive(self, timeout_s: float) -> bytes:
        """See `Job`."""
        outcome = self._result(min(timeout_s, self._left_s()))
        if self._num_taken >= len(outcome.frames):
            self._is_over = True
            self._raise_end()
        frame = outcome.frames[self._num_taken]
        self._num_taken += 1
        return frame

    def finish(self) -> tuple[JobEnd, bytes, bytes]:
        """See `Job`."""
        outcome = self._result(self._left_s())
        self._is_over = True
        self.detail = outcome.detail
        return outcome.end, outcome.stdout, outcome.stderr

    def close(self) -> None:
        """Nothing runs between two calls."""
        self._is_over = True

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def _raise_end(self) -> NoReturn:
        outcome = self._outcome or _Outcome(JobEnd.CRASHED, "it is over", ())
        self.detail = outcome.detail
        raise JobEnded(outcome.end, outcome.detail)

    def _result(self, wall_s: float) -> _Outcome:
        """The result of a run with everything sent so far."""
        if self._outcome is None:
            if wall_s <= 0:
                self._outcome = _Outcome(JobEnd.TIMEOUT, "no end", ())
            else:
                mark = secrets.token_hex(16)
                printed = self._sandbox.execute(self._program(mark, wall_s), wall_s=wall_s)
                self._outcome = self._read(printed, mark)
        return self._outcome

    def _program(self, mark: str, wall_s: float) -> str:
        """The runner with this job in it."""
        limits = self._limits
        output = limits.output_kb * 1024
        job = {
            "mark": mark,
            "seed": self._seed,
            "source": _text64(self._source.encode("utf-8", "surrogatepass")),
            "stdin": _text64(self._stdin),
            "frames": _text64(bytes(self._sent)),
            "wall_s": wall_s,
            "limits": {"stdout": output, "stderr": output, "frames": _MAX_FRAMES_BYTES},
            "rlimits": [(name, soft) for name, soft, _ in rlimits(limits)],
        }
        return f"{runner_text()}\n\nmain({json.dumps(json.dumps(job))})\n"

    def _read(self, printed: bytes, mark: str) -> _Outcome:
        """The runner's line. Without one the program has ended its runner, and that is its own fault."""
        line = next((line for line in printed.splitlines() if line.startswith(mark.encode())), None)
        if line is None:
            return _Outcome(JobEnd.CRASHED, "it ended the program that ran it", ())
        try:
            told = json.loads(base64.b64decode(line[len(mark) :], validate=True))
            stdout, stderr, frames = (base64.b64decode(told[name]) for name in ("stdout", "stderr", "frames"))
            self.cpu_s = float(told["cpu_s"])
            end, detail = _classify(told["status"], bool(told["late"]), self._limits, self.cpu_s)
            too_much = any(told["totals"][name] > self._limits.output_kb * 1024 for name in ("stdout", "stderr"))
        except (ValueError, KeyError, TypeError) as error:
            return _Outcome(JobEnd.CRASHED, f"it changed the report of the program that ran it: {error}", ())
        if end is JobEnd.FINISHED and too_much:
            end, detail = JobEnd.OUTPUT_LIMIT, f"wrote more than {self._limits.output_kb} kB"
        whole, oversize = _split(frames, self._limits.message_kb * 1024)
        if oversize:
            end, detail = JobEnd.OUTPUT_LIMIT, f"sent a frame of more than {self._limits.message_kb} kB"
        return _Outcome(end, detail, whole, stdout, stderr)


@functools.cache
def runner_text() -> str:
    """The program that runs a program."""
    return (files("reward.sandbox") / "runner.py").read_text(encoding="utf-8")


def _split(data: bytes, max_bytes: int) -> tuple[tuple[bytes, ...], bool]:
    """The whole frames at the start of the data; whether the next one is above the limit."""
    frames: list[bytes] = []
    position = 0
    while position + FRAME_HEADER.size <= len(data):
        size = FRAME_HEADER.unpack_from(data, position)[0]
        if size > max_bytes:
            return tuple(frames), True
        position += FRAME_HEADER.size
        if position + size > len(data):
            break
        frames.append(data[position : position + size])
        position += size
    return tuple(frames), False


def _classify(status: int, late: bool, limits: Limits, cpu_s: float) -> tuple[JobEnd, str]:
    if late:
        return JobEnd.TIMEOUT, "no end"
    if status == -signal.SIGXCPU or (status == -signal.SIGKILL and cpu_s >= limits.cpu_s):
        return JobEnd.TIMEOUT, f"used {cpu_s:.1f} s of processor time"
    if status in (-signal.SIGKILL, MEMORY_STATUS):
        return JobEnd.MEMORY, "out of memory"
    if status:
        return JobEnd.CRASHED, f"signal {-status}" if status < 0 else f"exit status {status}"
    return JobEnd.FINISHED, "exit status 0"


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode()
