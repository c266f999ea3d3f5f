"""Landlock: what a program may open, by paths, and the backend that needs no namespaces.

Rights that a kernel version knows are denied everywhere; each path below gives some back. Landlock does not govern
`stat`, `chdir`, changes of mode, owner and times, UDP, and sockets with a path: names and sizes of files can be seen,
the rest is the seccomp filter's.

The backend `landlock`: a private folder a slot, an own user a slot if this process is root, no_new_privs, Landlock
(files, TCP, signals and abstract sockets to outside), seccomp, rlimits. The programs see the host's file names.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reward.sandbox.config import SandboxConfig
from reward.sandbox.interpreter import Interpreter, find_interpreter, is_open
from reward.sandbox.jail import Launch, setup_message
from reward.sandbox.records import Unavailable
from reward.sandbox.seccomp import assemble
from reward.sandbox.users import slot_uid

MIN_ABI = 4
"""The first version that governs TCP."""
_CREATE_RULESET, _VERSION = 444, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NUM_FILE_RIGHTS_NEWEST = 16
_ALL_TCP, _ALL_SCOPES = 0b11, 0b11
_READ = _READ_FILE | _READ_DIR
_OWN = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_FILE_ONLY = _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def abi() -> int:
    """Version of Landlock in this kernel; 0 if it is missing, switched off or forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def ruleset(version: int, *, read: Iterable[str], own: str) -> dict[str, Any]:
    """What the server needs to build the ruleset: read below some paths, write below one, use the harmless devices."""
    handled = (1 << _NUM_FILE_RIGHTS.get(version, _NUM_FILE_RIGHTS_NEWEST)) - 1
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _ALL_TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _ALL_SCOPES)
    paths = [(path, _READ & _applicable(path)) for path in read]
    paths += [(device, (_READ_FILE | _WRITE_FILE) & handled) for device in DEVICES if os.path.exists(device)]
    return {"attributes": attributes.hex(), "paths": [*paths, (own, _OWN & handled)]}


def _applicable(path: str) -> int:
    """Rights that a path can have: those of folders make no sense for a file and are refused."""
    return ~0 if stat.S_ISDIR(os.stat(path).st_mode) else _FILE_ONLY


def launch(config: SandboxConfig) -> tuple[Launch, tuple[str, ...]]:
    """How to start a jail of the backend `landlock`, and what holds its programs. Unavailable if it cannot hold."""
    version = abi()
    if version < MIN_ABI:
        raise Unavailable(
            f"Landlock has version {version} here, {MIN_ABI} is needed" if version else f"no Landlock: {_why_none()}",
            "use Linux 6.7 or later with `landlock` in /sys/kernel/security/lsm, and a container runtime that lets "
            "the landlock_* calls pass",
        )
    uid = slot_uid()
    interpreter: Interpreter = find_interpreter(config.python, uid)
    folder = private_folder(uid)
    setup = setup_message(
        folder=str(folder),
        landlock=ruleset(version, read=interpreter.read_paths, own=str(folder)),
        seccomp=assemble(),
        num_own_processes=None if uid is None else 2,
    )
    layers = (f"landlock (ABI {version})", "seccomp", "rlimits", "no_new_privs", *(["own user"] if uid else []))
    return Launch((interpreter.path,), setup, uid, interpreter.environment, folder), layers


def private_folder(uid: int | None) -> Path:
    """Name of a new folder for one slot, where its user can reach it."""
    for place in (os.path.realpath(tempfile.gettempdir()), "/tmp", "/var/tmp"):
        base = Path(place)
        if base.is_dir() and (uid is None or is_open(base)):
            return base / f"unmask-jail-{uuid.uuid4().hex[:16]}"
    raise Unavailable(
        f"user {uid} can reach no folder for temporary files", "set TMPDIR to a folder that everybody may enter"
    )


def _why_none() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_CREATE_RULESET, None, 0, _VERSION)
    number = ctypes.get_errno()
    words = {
        errno.ENOSYS: "the kernel was built without it",
        errno.EOPNOTSUPP: "it is not switched on at boot",
        errno.EPERM: "the container forbids the call",
    }
    return f"{words.get(number, 'the call fails')} ({errno.errorcode.get(number, number)})"
