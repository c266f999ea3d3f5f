"""The backend `namespace`: bubblewrap around the server, then Landlock, seccomp and rlimits around each program.

The jail has own users, processes, network (none), IPC and host name. Its file system holds the interpreter and the
system's shared libraries, read-only, four harmless devices and a small `/tmp`. There is no /proc. The root and
everything else is read-only. If this process is root, it becomes another user before bubblewrap starts.
"""

from __future__ import annotations

import os
import shutil

from reward.sandbox.config import SandboxConfig
from reward.sandbox.interpreter import find_interpreter
from reward.sandbox.jail import Jail, Launch, setup_message
from reward.sandbox.landlock import DEVICES, abi, ruleset
from reward.sandbox.records import SandboxError, Unavailable
from reward.sandbox.seccomp import assemble
from reward.sandbox.users import slot_uid

_INSIDE_UID = "65534"
_UNSHARE = (
    "--unshare-user",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
)
_NUM_OWN_PROCESSES = 3
"""bubblewrap as process 1, the server and the program; threads come on top."""
_FIX = (
    "install bubblewrap 0.7 or later (`apt-get install bubblewrap`) and allow unprivileged user namespaces: "
    "`sysctl user.max_user_namespaces`, `kernel.unprivileged_userns_clone=1`, "
    "`kernel.apparmor_restrict_unprivileged_userns=0`; in a container, a seccomp profile that lets `unshare` and "
    "`mount` pass"
)


def launch(config: SandboxConfig) -> tuple[Launch, tuple[str, ...]]:
    """How to start a jail, and what holds its programs. Unavailable if bubblewrap is missing or does not work."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise Unavailable("bubblewrap (`bwrap`) is not installed", _FIX)
    uid = slot_uid()
    interpreter = find_interpreter(config.python, uid)
    version = abi()
    setup = setup_message(
        folder="/tmp",
        landlock=ruleset(version, read=interpreter.read_paths, own="/tmp") if version else None,
        seccomp=assemble(),
        num_own_processes=_NUM_OWN_PROCESSES,
        own_pids=True,
        own_file_system=True,
    )
    layers = ["bubblewrap", "seccomp", "rlimits", "no_new_privs"]
    layers += [f"landlock (ABI {version})"] if version else []
    layers += ["own user"] if uid is not None else []
    # Without a writable /proc/sys the second layer against nested namespaces is not to be had; seccomp is the first.
    for disable in (("--disable-userns",), ()):
        argv = (bubblewrap, *_UNSHARE, *disable, *_jail(config, interpreter.read_paths), interpreter.path)
        found = Launch(argv, setup, uid, interpreter.environment)
        why = _why_not(found)
        if why is None:
            return found, (*layers, *(["no nested namespaces"] if disable else []))
    raise Unavailable(f"bubblewrap does not start a jail: {why}", _FIX)


def _jail(config: SandboxConfig, read_paths: tuple[str, ...]) -> list[str]:
    """Options of bubblewrap after the namespaces."""
    options = [
        "--die-with-parent",
        "--uid",
        _INSIDE_UID,
        "--gid",
        _INSIDE_UID,
        "--hostname",
        "jail",
        "--cap-drop",
        "ALL",
    ]
    for path in read_paths:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind", path, path]
    for device in DEVICES:
        options += ["--dev-bind-try", device, device]
    options += ["--size", str(config.tmp_mb << 20), "--perms", "0700", "--tmpfs", "/tmp"]
    return [*options, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _why_not(launch: Launch) -> str | None:
    """Start it once; what it says if it does not come up."""
    try:
        Jail(launch).close()
    except SandboxError as error:
        return str(error)
    return None
