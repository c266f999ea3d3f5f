"""The program inside a jail: a warm fork server that runs one untrusted program at a time.

Its text, and that of the two files it imports, is started by exec with `python -c`, an empty environment and one
descriptor, the control socket (SEQPACKET, JSON). It is single-threaded, imports the standard library only besides, and
holds nothing worth stealing.

    owner -> server   setup       once: what holds a program
    server -> owner   ready       also after each job, when everything of it is gone
    owner -> server   run         with six descriptors: source, stdin, stdout, stderr, frames in, frames out
    server -> owner   ended       wait status, and what the server stopped it for, if it did
    owner -> server   kill        end the job now
    server -> owner   fault       the machinery failed; the jail is of no further use

The end of the control socket ends the server, and with it the jail.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import site
import socket
import struct
import sys
import time
from typing import Any, NoReturn

from reward.sandbox.folder import MAX_FILES, empty_folder, folder_exceeds
from reward.sandbox.program import run_program

_CONTROL, _RULESET = 5, 6
_FREE = 32
"""Descriptors from here on are out of the way of those a program gets."""
TICK_MS = 25
MAX_MESSAGE = 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CAPABILITY_VERSION = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)
if sys.platform == "linux":
    _libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    _libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)


def checked(result: int, step: str) -> int:
    """The result of a C call; OSError that names the step if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int, pointer: Any = None, *, step: str) -> None:
    """One `prctl` call."""
    checked(_libc.prctl(option, value, pointer, 0, 0), step)


def make_ruleset(setup: dict[str, Any]) -> int:
    """Descriptor of a Landlock ruleset: every handled right is denied but those that a path grants below itself."""
    attributes = bytes.fromhex(setup["attributes"])
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    created = _libc.syscall(_LANDLOCK_CREATE, ctypes.addressof(buffer), len(attributes), 0, 0)
    ruleset = checked(created, "landlock_create_ruleset")
    for path, rights in setup["paths"]:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, parent))
        added = _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, ctypes.addressof(rule), 0)
        checked(added, f"landlock_add_rule for {path}")
        os.close(parent)
    return fcntl.fcntl(ruleset, fcntl.F_DUPFD_CLOEXEC, _FREE)


class Filter:
    """A seccomp program, ready to be loaded."""

    def __init__(self, code: bytes) -> None:
        self._code = ctypes.create_string_buffer(code, len(code))
        size = struct.calcsize("HP")
        packed = struct.pack("HP", len(code) // 8, ctypes.addressof(self._code))
        self._program = ctypes.create_string_buffer(packed, size)

    def load(self) -> None:
        """Bind this process, for good."""
        prctl(_PR_SET_SECCOMP, 2, self._program, step="seccomp filter")


class Server:
    """State of the jail between jobs."""

    def __init__(self, control: socket.socket, setup: dict[str, Any]) -> None:
        self.control = control
        self.pid = os.getpid()
        self.program: int | None = None
        self.folder: str = setup["folder"]
        self.own_pids: bool = setup["own_pids"]
        self.num_own_processes: int | None = setup["num_own_processes"]
        self.own_file_system: bool = setup["own_file_system"]
        landlock, code = setup["landlock"], setup["seccomp"]
        self.ruleset = make_ruleset(landlock) if landlock else None
        self.filter = Filter(bytes.fromhex(code)) if code else None

    def run(self, job: dict[str, Any], descriptors: list[int]) -> None:
        """One program from fork to an empty jail."""
        self.program = os.fork()
        if self.program == 0:
            self._become_program(job, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        stopped = self._watch(self.program, job)
        _, status, usage = os.wait4(self.program, 0)
        self.program = None
        self.send({"ended": job["run"], "status": status, "stopped": stopped, "cpu_s": usage.ru_utime + usage.ru_stime})
        self._empty()
        self.send({"ready": job["run"]})

    def _empty(self) -> None:
        """Nothing of a program is left after this."""
        if self.own_pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        empty_folder(self.folder)

    def end(self) -> None:
        """Leave nothing of the jail."""
        if self.program is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.program, signal.SIGKILL)
                os.waitpid(self.program, 0)
        if not self.own_file_system:
            with contextlib.suppress(FileNotFoundError):
                empty_folder(self.folder)
                os.rmdir(self.folder)

    def send(self, message: dict[str, Any]) -> None:
        """One message to the owner."""
        self.control.send(json.dumps(message).encode())

    def _watch(self, pid: int, job: dict[str, Any]) -> str | None:
        """Wait for the end of a program; the limit it was stopped for, if any."""
        pidfd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(self.control, select.POLLIN)
        deadline = time.monotonic() + job["backstop_s"]
        stopped = None
        while True:
            ready = [descriptor for descriptor, _ in poller.poll(TICK_MS)]
            if pidfd in ready:
                os.close(pidfd)
                return stopped
            if ready:
                if not self.control.recv(MAX_MESSAGE):
                    raise EOFError
                stopped = stopped or "killed"
            elif stopped is None:
                stopped = "wall" if time.monotonic() > deadline else self._excess(pid, job)
            if stopped:
                os.kill(pid, signal.SIGKILL)

    def _excess(self, pid: int, job: dict[str, Any]) -> str | None:
        """What the kernel does not count for us: files in the folder and, where processes share a user, threads."""
        if self.own_file_system:
            used = os.statvfs(self.folder)
            if (used.f_blocks - used.f_bfree) * used.f_frsize > job["tmp_bytes"]:
                return "files"
            if used.f_files and used.f_files - used.f_ffree > MAX_FILES:
                return "files"
        elif folder_exceeds(self.folder, job["tmp_bytes"]):
            return "files"
        if self.num_own_processes is None and os.stat(f"/proc/{pid}/task").st_nlink - 2 > job["num_threads"] + 1:
            return "threads"
        return None

    def _become_program(self, job: dict[str, Any], descriptors: list[int]) -> NoReturn:
        """Turn this fork into the untrusted program. Never returns."""
        try:
            source = self._confine(job, descriptors)
        except BaseException as error:  # noqa: BLE001 - a fork must never return into the server's loop
            with contextlib.suppress(OSError):
                text = json.dumps({"fault": f"preparing a job: {type(error).__name__}: {error}"})
                os.write(_CONTROL, text.encode())
            os._exit(1)
        os.close(_CONTROL)
        gc.enable()
        run_program(source)

    def _confine(self, job: dict[str, Any], descriptors: list[int]) -> bytes:
        """Descriptors, limits, Landlock and seccomp, in this order; the program's text."""
        source_fd, *given = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _FREE) for descriptor in descriptors]
        source = os.pread(source_fd, os.fstat(source_fd).st_size, 0)
        held = [self.control.fileno()] if self.ruleset is None else [self.control.fileno(), self.ruleset]
        for target, descriptor in enumerate([*given, *held]):
            os.dup2(descriptor, target)
        os.closerange(_CONTROL + len(held), _FREE + 64)
        if not self.own_pids:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, step="PR_SET_PDEATHSIG")
        if os.getppid() != self.pid:
            os._exit(1)
        os.chdir(self.folder)
        for name, soft, hard in job["rlimits"]:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        if self.num_own_processes is not None:
            most = self.num_own_processes + job["num_threads"]
            resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        if self.ruleset is not None:
            checked(_libc.syscall(_LANDLOCK_RESTRICT, _RULESET, None, 0, 0), "landlock_restrict_self")
            os.close(_RULESET)
        if self.filter is not None:
            self.filter.load()
        return source


def harden_server(setup: dict[str, Any]) -> None:
    """What holds for the server and, inherited, for every program."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1, step="PR_SET_NO_NEW_PRIVS")
    prctl(_PR_SET_DUMPABLE, 0, step="PR_SET_DUMPABLE")
    # Root of a user namespace with one user in it cannot become another one.
    nothing = struct.pack("=6I", *[0] * 6)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    none = ctypes.create_string_buffer(nothing, len(nothing))
    checked(_libc.capset(header, none), "capset")
    if not setup["own_pids"]:
        signal.signal(signal.SIGTERM, leave)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, step="PR_SET_PDEATHSIG")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.environ.clear()


def leave(*_: object) -> NoReturn:
    """The owner is gone."""
    raise EOFError


def preload(names: list[str]) -> None:
    """Import what programs often need, without what `threading` and `random` would do in each fork.

    A third of a job's time would go there. A fork of a process with one thread needs none of it, and `random` starts
    from the same state in each program, so that a program ends the same way each time.
    """
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: None
    for name in ("threading", "random", *names):
        importlib.import_module(name)
    os.register_at_fork = register
    sys.modules["random"].seed(0)


def serve(server: Server, setup: dict[str, Any]) -> NoReturn:
    """Run jobs until the control socket ends, with EOFError."""
    preload(setup["preload"])
    site.setquit()
    sys.path[:] = [folder for folder in sys.path if folder]
    gc.collect()
    gc.freeze()
    gc.disable()
    server.send({"ready": 0, "python": sys.version.split()[0], "uid": os.getuid()})
    while True:
        message, descriptors, _, _ = socket.recv_fds(server.control, MAX_MESSAGE, 6)
        if not message:
            raise EOFError
        job = json.loads(message)
        if "run" in job:
            server.run(job, descriptors)


def main(descriptor: int) -> None:
    """Serve; leave nothing at the end."""
    control = socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE))
    os.close(descriptor)
    server = None
    try:
        setup = json.loads(control.recv(MAX_MESSAGE))
        harden_server(setup)
        server = Server(control, setup)
        serve(server, setup)
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001 - becomes a fault that the owner reads
        with contextlib.suppress(OSError):
            control.send(json.dumps({"fault": f"{type(error).__name__}: {error}"}).encode())
    finally:
        if server is not None:
            # The owner's end shows twice, in the socket and as a signal; the second may come while we leave.
            with contextlib.suppress(EOFError):
                server.end()
            server.end()
