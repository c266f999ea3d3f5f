"""Programs that try what a sandbox must prevent, run through the real path before it is used.

Each prints `held`, or what it could do. A backend holds if every one ends as expected and leaves no trace outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward.sandbox.interface import Sandbox
from reward.sandbox.records import CanaryResult, JobEnd, Limits, SandboxError

_PRELUDE = """
import ctypes, os, signal, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
done = []
def attempt(name, step):
    try:
        if step() is not False:
            done.append(name)
    except BaseException:
        pass
"""
_REPORT = "\nprint('; '.join(done) or 'held')\n"

_WORKS = """
import fractions, json, math, threading
results = []
threads = [threading.Thread(target=results.append, args=(i,)) for i in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with open('scratch', 'w') as file: file.write('kept')
assert open('scratch').read() == 'kept' and sorted(results) == list(range(8)) and math.gcd(12, 18) == 6
print('held')
"""
_CONNECT = """
def tcp(): socket.create_connection(('127.0.0.1', @port), timeout=0.5)
def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'canary', ('127.0.0.1', @port))
def unix(): socket.socket(socket.AF_UNIX).connect(@abstract)
def path(): socket.socket(socket.AF_UNIX).connect(@socket_path)
for step in (tcp, unix, path): attempt('reached ' + step.__name__, step)
try: udp()
except OSError: pass
"""
_SOCKETS = """
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        attempt(f'opened {family.name} {kind.name}', lambda: socket.socket(family, kind))
"""
_WRITE = """
def write(path):
    with open(path, 'w') as file: file.write('canary')
for path in (@folder + '/canary', '/canary', '/dev/canary', '/dev/shm/canary', '/var/tmp/canary', '/usr/lib/canary'):
    attempt('wrote ' + path, lambda: write(path))
attempt('changed a mode', lambda: os.chmod(@secret_path, 0o666))
attempt('removed a file', lambda: os.unlink(@secret_path))
"""
_ENVIRONMENT = """
def read(path):
    with open(path, 'rb') as file: text = file.read()
    return @secret in text or any(not name.startswith((b'PYTHONHASHSEED=', b'LD_', b'PWD='))
                                  for name in text.split(b'\\0') if name)
attempt('has an environment', lambda: bool(os.environ))
attempt('has a C environment', lambda: ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')[0] is not None)
for pid in ('self', 1, os.getppid(), @owner): attempt('read an environment', lambda: read(f'/proc/{pid}/environ'))
"""
_FILE = """
def read(path):
    with open(path, 'rb') as file: return @secret in file.read()
for place in ('', '/proc/self/root', '/proc/1/root', f'/proc/{@owner}/root'):
    attempt('read ' + place + @secret_path, lambda: read(place + @secret_path))
attempt('read by a descriptor', lambda: read('/proc/self/fd/%d' % os.open(@secret_path, os.O_PATH)))
"""
_FORK = """
def fork():
    if os.fork() == 0: os._exit(0)
def spawn(): os.posix_spawn(sys.executable, ['python'], {})
def clone3(): return libc.syscall(435, (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17), 64) >= 0
def execute(): os.execv(sys.executable, [sys.executable, '-c', 'print("executed")'])
for step in (fork, spawn, clone3, execute): attempt(step.__name__, step)
"""
_KILL = """
import resource
for pid in (os.getppid(), @owner, 1, -1): attempt(f'signalled {pid}', lambda: os.kill(pid, 0))
attempt('killed its parent', lambda: os.kill(os.getppid(), signal.SIGKILL))
for pid in (os.getppid(), @owner): attempt('limited', lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)))
attempt('opened a pidfd', lambda: os.pidfd_open(os.getppid()))
"""
_PTRACE = """
buffer = ctypes.create_string_buffer(8)
local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
for pid in (os.getppid(), @owner, 1):
    attempt('attached', lambda: libc.ptrace(16, pid, None, None) == 0)
    attempt('seized', lambda: libc.ptrace(0x4206, pid, None, None) == 0)
    attempt('read memory', lambda: libc.process_vm_readv(pid, local, 1, local, 1, 0) >= 0 or ctypes.get_errno() != 1)
    attempt('opened memory', lambda: os.open(f'/proc/{pid}/mem', os.O_RDONLY))
"""
_NAMESPACES = """
attempt('user namespace', lambda: libc.unshare(0x10000000) == 0)
attempt('mount', lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)
add_key = 248 if os.uname().machine == 'x86_64' else 217
attempt('keyring', lambda: libc.syscall(add_key, b'user', b'a', b'b', 1, -3) >= 0)
"""
_MEMORY = "block = bytearray(@too_much)\nblock[::4096] = b'x' * len(block[::4096])\nprint('allocated')\n"
_DISK = """
block = b'x' * 1000000
for number in range(@too_many_files):
    with open(f'file{number}', 'wb') as file: file.write(block)
print('filled the disk')
"""
_LEAVE = """
import json
json.canary = 1
for place in ('', '/tmp/', '/dev/shm/'):
    try: open(place + 'marker', 'w').close()
    except OSError: pass
os.mkdir('folder')
print('held')
"""
_FIND = """
import json
for place in ('.', '/tmp', '/dev/shm'):
    attempt('found a file in ' + place, lambda: bool({'marker', 'folder'} & set(os.listdir(place))))
attempt('found a changed module', lambda: json.canary)
"""


@dataclass(frozen=True, slots=True)
class Canary:
    """A program, its limits, and the ends that are fine."""

    name: str
    text: str
    limits: Limits
    ends: tuple[JobEnd, ...] = (JobEnd.FINISHED,)


_QUICK = Limits(wall_s=20.0, cpu_s=10.0)
_KILLED = (JobEnd.CRASHED, JobEnd.MEMORY)
CANARIES = (
    Canary("works", _PRELUDE + _WORKS, _QUICK),
    Canary("connect", _PRELUDE + _CONNECT + _REPORT, _QUICK),
    Canary("open a socket", _PRELUDE + _SOCKETS + _REPORT, _QUICK),
    Canary("write outside", _PRELUDE + _WRITE + _REPORT, _QUICK),
    Canary("read a secret in the environment", _PRELUDE + _ENVIRONMENT + _REPORT, _QUICK),
    Canary("read a secret in a file", _PRELUDE + _FILE + _REPORT, _QUICK),
    Canary("fork", _PRELUDE + _FORK + _REPORT, _QUICK),
    Canary("kill the parent", _PRELUDE + _KILL + _REPORT, _QUICK),
    Canary("ptrace the parent", _PRELUDE + _PTRACE + _REPORT, _QUICK),
    Canary("new namespace", _PRELUDE + _NAMESPACES + _REPORT, _QUICK),
    Canary("memory over the limit", _MEMORY, dataclasses.replace(_QUICK, memory_mb=256), _KILLED),
    Canary("disk over the limit", _DISK, dataclasses.replace(_QUICK, tmp_mb=4), (JobEnd.CRASHED, JobEnd.OUTPUT_LIMIT)),
    Canary("endless loop", "while True: pass\n", dataclasses.replace(_QUICK, wall_s=0.3), (JobEnd.TIMEOUT,)),
    Canary("leave a marker", _PRELUDE + _LEAVE, _QUICK),
    Canary("find the marker", _PRELUDE + _FIND + _REPORT, _QUICK),
)


HOSTED = (
    *("works", "connect", "read a secret in a file", "memory over the limit", "endless loop"),
    *("leave a marker", "find the marker"),
)
"""Those that a sandbox has to hold that gives each program a machine of its own: what it does there is no matter."""


def run_canaries(sandbox: Sandbox, names: Sequence[str] | None = None) -> tuple[CanaryResult, ...]:
    """Run the programs (all, or those named) in one slot, one after the other."""
    chosen = [canary for canary in CANARIES if names is None or canary.name in names]
    with tempfile.TemporaryDirectory(prefix="unmask-canary-") as folder, _Trap(Path(folder)) as trap:
        return tuple(_run(sandbox, canary, trap) for canary in chosen)


def _run(sandbox: Sandbox, canary: Canary, trap: _Trap) -> CanaryResult:
    try:
        with sandbox.start(trap.fill(canary.text), limits=canary.limits) as job:
            end, stdout, stderr = job.finish()
    except SandboxError as error:
        return CanaryResult(canary.name, passed=False, detail=str(error))
    expected = b"held" if JobEnd.FINISHED in canary.ends else b""
    traces = trap.traces()
    if end in canary.ends and stdout.strip() == expected and not traces:
        return CanaryResult(canary.name, passed=True)
    words = b" ".join([stdout.strip(), stderr.strip()[-500:]]).decode(errors="replace").strip()
    return CanaryResult(canary.name, passed=False, detail="; ".join([f"{end} ({job.detail})", words, *traces]))


class _Trap:
    """What the programs try to reach: a secret in a file, a folder that everybody may write to, listening sockets."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self._secret = secrets.token_hex(16).encode()
        self._secret_path = folder / "secret"
        self._secret_path.write_bytes(self._secret)
        self._secret_path.chmod(0o644)
        self._open_folder = folder / "open"
        self._open_folder.mkdir()
        self._open_folder.chmod(0o777)
        with contextlib.ExitStack() as sockets:
            self._tcp = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
            self._port = self._tcp.getsockname()[1]
            self._udp = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._udp.bind(("127.0.0.1", self._port))
            self._abstract = f"\0unmask-canary-{secrets.token_hex(8)}"
            self._path = str(folder / "socket")
            self._unix = []
            for address in (self._abstract, self._path):
                self._unix.append(sockets.enter_context(socket.socket(socket.AF_UNIX)))
                self._unix[-1].bind(address)
                self._unix[-1].listen()
            os.chmod(self._path, 0o777)
            for listener in (self._tcp, self._udp, *self._unix):
                listener.setblocking(False)
            self._sockets = sockets.pop_all()

    def __enter__(self) -> _Trap:
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()

    def fill(self, text: str) -> str:
        """A program text with the addresses of the trap in it."""
        values = {
            "port": self._port,
            "abstract": self._abstract,
            "socket_path": self._path,
            "folder": str(self._open_folder),
            "secret_path": str(self._secret_path),
            "secret": self._secret,
            "owner": os.getpid(),
            "too_much": 512 << 20,
            "too_many_files": 512,
        }
        return re.sub(r"@([a-z_]+)", lambda match: repr(values[match[1]]), text)

    def traces(self) -> list[str]:
        """What has come out."""
        found = [f"left {path.name} outside" for path in self._open_folder.iterdir()]
        if not self._secret_path.exists() or self._secret_path.stat().st_mode & 0o777 != 0o644:
            found.append("changed a file outside")
        for listener in (self._tcp, *self._unix):
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                found.append("reached a socket")
        with contextlib.suppress(BlockingIOError):
            self._udp.recv(100)
            found.append("reached a socket")
        return found
