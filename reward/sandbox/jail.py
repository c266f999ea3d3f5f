"""A started jail: the process, its control socket, and how both end.

Linux sends the parent-death signal when the *thread* that started a process ends, so every jail is started by one
thread that lives as long as this process. If this process dies, all its jails die: by that signal, and because their
control sockets end.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from reward.sandbox.folder import empty_folder
from reward.sandbox.records import SandboxError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
_GROUP_TIMEOUT_S = 0.5
"""How long the killed rest of a jail, which is not ours to wait for, may take to go."""
_MAX_MESSAGE = 1 << 18
_MAX_WORDS = 2000
PRELOAD = (
    *("abc", "ast", "base64", "bisect", "calendar", "cmath", "collections", "collections.abc", "contextlib", "copy"),
    *("dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io"),
    *("itertools", "json", "math", "numbers", "operator", "os", "queue", "random", "re", "statistics", "string"),
    *("struct", "sys", "tempfile", "textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata"),
)
"""Modules that the server imports before it forks; others are imported by the programs that need them."""

_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LD_BIND_NOW": "1"}
"""One seed for the order of sets, so that a program ends the same way each time; symbols bound once, not in each
fork. The server clears its environment before the first program."""

_LOAD = """
import sys, types
def load(name, text):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)
"""
_SHELL = ("/bin/sh", "-c", '{ echo 1000 > /proc/self/oom_score_adj; } 2> /dev/null; exec "$@"', "sh")
"""If the host runs out of memory, programs go first, not the process that trains."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one kind of jail in one slot."""

    argv: tuple[str, ...]
    """Everything up to the interpreter, included."""
    setup: dict[str, Any]
    """First message to the server; see `setup_message`."""
    uid: int | None = None
    """User and group to become first; None stays."""
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    """Folder on the host that only this slot uses; made at the start, removed at the end."""


def setup_message(
    *,
    folder: str,
    landlock: dict[str, Any] | None = None,
    seccomp: bytes | None = None,
    num_own_processes: int | None = None,
    own_pids: bool = False,
    own_file_system: bool = False,
) -> dict[str, Any]:
    """What the server needs to know.

    `num_own_processes`: processes of the jail that the kernel counts together with a program's threads; None if it
    would count processes outside the jail too, so that the server has to count. `own_pids`: the jail sees no processes
    but its own. `own_file_system`: the folder is one.
    """
    return {
        "folder": folder,
        "landlock": landlock,
        "seccomp": seccomp.hex() if seccomp else None,
        "num_own_processes": num_own_processes,
        "own_pids": own_pids,
        "own_file_system": own_file_system,
        "preload": PRELOAD,
    }


@functools.cache
def _starter(pid: int) -> ThreadPoolExecutor:
    """The thread that starts the jails of this process; a forked process gets its own."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"jail-starter-{pid}")


def _become(uid: int | None) -> tuple[tuple[str, ...], int | None]:
    """Words before a command that run it as another user, and the user that Popen is left to become.

    Where Popen itself changes the user it copies the address space, which the kernel refuses to a process that has
    reserved more memory than the machine has (a learner, a model); without, it borrows it.
    """
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
    if uid is None or setpriv is None:
        return (), uid
    return (setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"), None


@functools.cache
def server_text() -> str:
    """The program of the server: the files it consists of, loaded under their own names."""
    loads = [_LOAD]
    for name in ("folder", "program", "server"):
        text = (files("reward.sandbox") / f"{name}.py").read_text(encoding="utf-8")
        loads.append(f"load({f'reward.sandbox.{name}'!r}, {text!r})")
    return "\n".join([*loads, 'sys.modules["reward.sandbox.server"].main(int(sys.argv[1]))'])


class Jail:
    """A running fork server. Raises SandboxError with the jail's own words if it does not come up."""

    def __init__(self, launch: Launch, *, timeout_s: float = START_TIMEOUT_S) -> None:
        self._launch = launch
        self._owner = os.getpid()
        self._stderr = os.memfd_create("jail-stderr", os.MFD_CLOEXEC)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            if launch.folder is not None:
                _make_folder(launch.folder, launch.uid)
            with theirs:
                self._process = _starter(os.getpid()).submit(self._start, theirs.fileno()).result()
            self.control.send(json.dumps(launch.setup).encode())
            self.hello = self._wait_started(timeout_s)
        except BaseException as error:
            words = self.close(now=True)
            if isinstance(error, OSError | SandboxError):
                raise SandboxError(f"jail did not start: {words or error}") from error
            raise

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        launch = self._launch
        become, user = _become(launch.uid)
        argv = [*become, *_SHELL, *launch.argv, "-s", "-S", "-B", "-X", "utf8", "-c", server_text(), str(descriptor)]
        # A pipe, as the programs will have one: the text stream on top of it is made only once.
        reads, writes = os.pipe2(os.O_CLOEXEC)
        try:
            return subprocess.Popen(
                argv,
                env={**_ENVIRONMENT, **launch.environment},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=writes,
                stderr=self._stderr,
                pass_fds=(descriptor,),
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else (),
            )
        finally:
            os.close(reads)
            os.close(writes)

    def _wait_started(self, timeout_s: float) -> dict[str, Any]:
        """The server's first word; SandboxError at once if what was started ends before it comes."""
        assert self._process is not None
        ended = os.pidfd_open(self._process.pid)
        try:
            poller = select.poll()
            poller.register(ended, select.POLLIN)
            poller.register(self.control, select.POLLIN)
            ready = [descriptor for descriptor, _ in poller.poll(timeout_s * 1000)]
        finally:
            os.close(ended)
        if self.control.fileno() not in ready:
            raise SandboxError("it ended" if ready else f"no word of its server within {timeout_s:g} s")
        return self.wait_ready(0, timeout_s=timeout_s)

    @property
    def pid(self) -> int:
        """Process id, on the host, of what was started."""
        assert self._process is not None
        return self._process.pid

    def receive(self) -> dict[str, Any]:
        """One message of the server; SandboxError on the end of the socket, on nonsense, and on a fault it reports."""
        try:
            text = self.control.recv(_MAX_MESSAGE)
        except OSError as error:
            raise SandboxError(f"jail: {error}") from error
        if not text:
            raise SandboxError("jail: its server has died")
        try:
            message = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise SandboxError(f"jail: its server says {text!r:.200}") from error
        if "fault" in message:
            raise SandboxError(f"jail: {message['fault']}")
        return message

    def wait_ready(self, run: int, *, timeout_s: float) -> dict[str, Any]:
        """The server's word that nothing of job `run` is left."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.control.settimeout(max(0.001, deadline - time.monotonic()))
            message = self.receive()
            if message.get("ready") == run:
                return message

    def close(self, *, now: bool = False) -> str:
        """End every process of the jail and remove its folder; what the jail wrote to stderr, shortened.

        The end of the control socket lets the server leave; `now` kills it, for one that may not listen. In a fork of
        the process that started it, a jail is left alone.
        """
        self.control.close()
        if os.getpid() != self._owner:
            return ""
        if self._process is not None and self._process.returncode is None:
            self._end_processes(self._process, now=now)
        if self._launch.folder is not None:
            _remove_folder(self._launch.folder)
        return self._words()

    @staticmethod
    def _end_processes(process: subprocess.Popen[bytes], *, now: bool) -> None:
        """Wait for the end of what was started, or kill it; then kill what may be left of its process group.

        A bubblewrap that dies while it starts leaves a child that waits for it for ever. The group keeps its number
        until its leader has been waited for.
        """
        ended = os.pidfd_open(process.pid)
        try:
            poller = select.poll()
            poller.register(ended, select.POLLIN)
            if not now:
                poller.poll(CLOSE_TIMEOUT_S * 1000)
        finally:
            os.close(ended)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + _GROUP_TIMEOUT_S
        while _has_living(process.pid) and time.monotonic() < deadline:
            time.sleep(0.002)

    def _words(self) -> str:
        """The end of what the jail wrote to stderr, once."""
        if self._stderr < 0:
            return ""
        descriptor, self._stderr = self._stderr, -1
        with open(descriptor, "rb") as file:
            file.seek(max(0, os.fstat(descriptor).st_size - _MAX_WORDS))
            return file.read(_MAX_WORDS).decode(errors="replace").strip()


def _has_living(group: int) -> bool:
    """Whether a process of the group still runs. One that has ended and waits for another's `wait` does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def _make_folder(folder: Path, uid: int | None) -> None:
    folder.mkdir(mode=0o700)
    if uid is not None:
        os.chown(folder, uid, uid)


def _remove_folder(folder: Path) -> None:
    """Remove a slot's folder. Its last program may be dying just now, and make a file while we do."""
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while folder.exists():
        try:
            empty_folder(str(folder))
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
