"""One untrusted program in a jail, seen from outside: frames in and out, captured output, the deadline, the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from reward.sandbox.interface import Job
from reward.sandbox.jail import Jail
from reward.sandbox.limits import MB, check_frame, rlimits
from reward.sandbox.program import MEMORY_STATUS
from reward.sandbox.records import FRAME_HEADER, JobEnd, JobEnded, Limits, SandboxError, pack_frame

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_END_TIMEOUT_S = 10.0
"""How long a server may take to report the end of a program that it was told to kill."""
_BACKSTOP_S = 5.0
"""The server's own deadline lies this far behind the owner's."""
_MAX_OUTPUT_TIMES = 64


class JailJob(Job):
    """A program in a jail of this host."""

    def __init__(self, jail: Jail, run: int, child_source: str, limits: Limits, stdin: bytes) -> None:
        self.run = run
        self.jail = jail
        self.broken = False
        """The jail failed during this job and has to be replaced."""
        self._limits = limits
        self._deadline = time.monotonic() + limits.wall_s
        self._stopped: JobEnd | None = None
        self._ended: dict[str, Any] | None = None
        self._frame = bytearray()
        self._takes_frames = True
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._num_output = {"stdout": 0, "stderr": 0}
        self._open: dict[int, str] = {}
        self._poller = select.poll()
        self._launch(child_source, stdin)

    def _launch(self, child_source: str, stdin: bytes) -> None:
        with contextlib.ExitStack() as theirs:

            def lend(descriptor: int) -> int:
                theirs.callback(os.close, descriptor)
                return descriptor

            def pipe(name: str, *, writes: bool = False) -> int:
                read, write = os.pipe2(os.O_CLOEXEC)
                ours, lent = (write, read) if writes else (read, write)
                os.set_blocking(ours, False)
                self._open[ours] = name
                return lend(lent)

            try:
                descriptors = [
                    lend(_sealed(child_source.encode("utf-8", "surrogatepass"))),
                    lend(_sealed(stdin)),
                    pipe("stdout"),
                    pipe("stderr"),
                    pipe("in", writes=True),
                    pipe("out"),
                ]
                message = json.dumps({"run": self.run, **_for_server(self._limits)}).encode()
                socket.send_fds(self.jail.control, [message], descriptors)
            except BaseException:
                self._ended = {}
                self.close()
                raise
        self._in, self._out = (self._descriptor(name) for name in ("in", "out"))
        for name in ("stdout", "stderr"):
            self._poller.register(self._descriptor(name), select.POLLIN)
        self._poller.register(self.jail.control, select.POLLIN)

    @property
    def is_over(self) -> bool:
        """Whether the program is known to be gone."""
        return self._ended is not None or self.broken

    def send(self, frame: bytes) -> None:
        """See `Job`; ValueError for a frame above the limit."""
        check_frame(frame, self._limits)
        pending = memoryview(pack_frame(frame))
        while pending:
            if self._in not in self._open:
                self._raise_end("its channel is closed")
            try:
                pending = pending[os.write(self._in, pending) :]
            except BlockingIOError:
                self._wait_for(self._in, select.POLLOUT, self._deadline)
            except BrokenPipeError:
                self._close(self._in)

    def receive(self, timeout_s: float) -> bytes:
        """See `Job`."""
        deadline = min(self._deadline, time.monotonic() + timeout_s)
        while (frame := self._take_frame()) is None:
            if self._out not in self._open:
                self._raise_end("it closed its channel")
            self._wait_for(self._out, select.POLLIN, deadline)
        return frame

    def finish(self) -> tuple[JobEnd, bytes, bytes]:
        """See `Job`."""
        self._close(self._in)
        self._takes_frames = False
        if self._out in self._open:
            self._poller.register(self._out, select.POLLIN)
        with contextlib.suppress(JobEnded):
            while self._ended is None or self._open:
                self._step(self._deadline)
        self._wait_end()
        return self._end(), bytes(self._output["stdout"]), bytes(self._output["stderr"])

    def close(self) -> None:
        """Kill the program if it still runs, and wait until it is gone. A jail that does not do so is ended."""
        try:
            self._wait_end()
        except SandboxError as error:
            log.warning("a jail is ended: %s", error)
            self.jail.close(now=True)
        finally:
            for descriptor in tuple(self._open):
                self._close(descriptor)

    def _wait_for(self, descriptor: int, event: int, deadline: float) -> None:
        """One step during which a channel is looked at too."""
        self._poller.register(descriptor, event)
        try:
            self._step(deadline)
        finally:
            if descriptor in self._open:
                self._poller.unregister(descriptor)

    def _step(self, deadline: float) -> None:
        """Handle what has come, waiting for it until the deadline; JobEnded(timeout) then."""
        wait_s = deadline - time.monotonic()
        if wait_s <= 0:
            self._stop(JobEnd.TIMEOUT, "no end" if deadline == self._deadline else "no answer")
            raise JobEnded(JobEnd.TIMEOUT, self.detail)
        for descriptor, _ in self._poller.poll(math.ceil(wait_s * 1000)):
            name = self._open.get(descriptor)
            if name in self._output:
                self._read_output(descriptor, name)
            elif name == "out":
                self._read_channel(descriptor)
            elif name is None:
                self._read_control()

    def _read_control(self) -> None:
        try:
            message = self.jail.receive()
        except SandboxError:
            self.broken = True
            raise
        if message.get("ended") == self.run:
            self._ended = message
            self.cpu_s = message["cpu_s"]
            self._poller.unregister(self.jail.control)

    def _read_output(self, descriptor: int, name: str) -> None:
        data = self._read(descriptor, _CHUNK)
        limit = self._limits.output_kb * 1024
        self._num_output[name] += len(data)
        self._output[name] += data[: max(0, limit - len(self._output[name]))]
        if self._num_output[name] > _MAX_OUTPUT_TIMES * limit:
            self._stop(JobEnd.OUTPUT_LIMIT, f"wrote more than {_MAX_OUTPUT_TIMES * limit} bytes to {name}")
            raise JobEnded(JobEnd.OUTPUT_LIMIT, self.detail)

    def _read_channel(self, descriptor: int) -> None:
        """Read what is missing of one frame and no more; anything, to drop it, if no frame is wanted any more."""
        if not self._takes_frames:
            self._read(descriptor, _CHUNK)
            return
        self._frame += self._read(descriptor, min(self._missing(), _CHUNK))
        if self._missing() > self._limits.message_kb * 1024:
            self._stop(JobEnd.OUTPUT_LIMIT, f"sent a frame of more than {self._limits.message_kb} kB")
            raise JobEnded(JobEnd.OUTPUT_LIMIT, self.detail)

    def _read(self, descriptor: int, size: int) -> bytes:
        """What is there. At its end the descriptor is closed."""
        try:
            data = os.read(descriptor, size)
        except BlockingIOError:
            return b""
        if not data:
            self._poller.unregister(descriptor)
            self._close(descriptor)
        return data

    def _missing(self) -> int:
        """Bytes until the header, then the frame, is complete."""
        if len(self._frame) < FRAME_HEADER.size:
            return FRAME_HEADER.size - len(self._frame)
        return FRAME_HEADER.size + int(FRAME_HEADER.unpack_from(self._frame)[0]) - len(self._frame)

    def _take_frame(self) -> bytes | None:
        if len(self._frame) < FRAME_HEADER.size or self._missing():
            return None
        frame = bytes(self._frame[FRAME_HEADER.size :])
        self._frame.clear()
        return frame

    def _raise_end(self, detail: str) -> NoReturn:
        """JobEnded with how the program ended; it is given a moment to do so, then stopped."""
        with contextlib.suppress(JobEnded):
            moment = min(self._deadline, time.monotonic() + 1.0)
            while self._ended is None:
                self._step(moment)
        if self._stopped is JobEnd.TIMEOUT and time.monotonic() < self._deadline:
            self._stopped = JobEnd.CRASHED
            self.detail = detail
        self._wait_end()
        raise JobEnded(self._end(), f"{detail}; {self.detail}")

    def _stop(self, end: JobEnd, detail: str) -> None:
        """Have the program killed, for a reason that then stands as its end."""
        if self._stopped is None:
            self._stopped, self.detail = end, detail
            if self._ended is None:
                with contextlib.suppress(OSError):
                    self.jail.control.send(b'{"kill": true}')

    def _wait_end(self) -> None:
        """Have the server say that the program is gone. SandboxError if it does not."""
        if self._ended is not None or self.broken:
            return
        self._stop(JobEnd.CRASHED, "left by its owner")
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self._ended is None:
            self.jail.control.settimeout(max(0.001, deadline - time.monotonic()))
            self._read_control()
        self.jail.control.settimeout(None)

    def _end(self) -> JobEnd:
        assert self._ended is not None
        if self._stopped is not None:
            return self._stopped
        end, self.detail = _classify(self._ended, self._limits)
        if end is JobEnd.FINISHED and any(n > self._limits.output_kb * 1024 for n in self._num_output.values()):
            end, self.detail = JobEnd.OUTPUT_LIMIT, f"wrote more than {self._limits.output_kb} kB"
        return end

    def _descriptor(self, name: str) -> int:
        return next(descriptor for descriptor, other in self._open.items() if other == name)

    def _close(self, descriptor: int) -> None:
        if self._open.pop(descriptor, None) is not None:
            os.close(descriptor)


def _classify(ended: dict[str, Any], limits: Limits) -> tuple[JobEnd, str]:
    """The word for a wait status and for what the server stopped the program for."""
    status, stopped = ended["status"], ended["stopped"]
    if stopped == "wall":
        return JobEnd.TIMEOUT, "no end"
    if stopped == "files":
        return JobEnd.OUTPUT_LIMIT, "too many or too large files"
    if stopped == "threads":
        return JobEnd.CRASHED, f"more than {limits.num_threads} threads"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and ended["cpu_s"] >= limits.cpu_s):
            return JobEnd.TIMEOUT, f"used {ended['cpu_s']:.1f} s of processor time"
        if number == signal.SIGKILL:
            return JobEnd.MEMORY, "killed by the system"
        return JobEnd.CRASHED, f"signal {signal.Signals(number).name}"
    code = os.WEXITSTATUS(status)
    if code == MEMORY_STATUS:
        return JobEnd.MEMORY, "MemoryError"
    return (JobEnd.CRASHED if code else JobEnd.FINISHED), f"exit status {code}"


def _for_server(limits: Limits) -> dict[str, Any]:
    """Limits as the server applies them."""
    return {
        "backstop_s": limits.wall_s + _BACKSTOP_S,
        "tmp_bytes": limits.tmp_mb * MB,
        "num_threads": limits.num_threads,
        "rlimits": rlimits(limits),
    }


def _sealed(content: bytes) -> int:
    """Descriptor of a file in memory that nobody can change."""
    descriptor = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
