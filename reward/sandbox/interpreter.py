"""The Python that untrusted programs run on: where it is, and what of the host it needs to read.

By default the interpreter of this process, so that a program means the same to both sides. If the jail's user cannot
reach it (root's own Python below /root is the usual case), root keeps a copy of it, without installed packages, below
`/var/cache/unmask`, where only root writes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward.sandbox.records import Unavailable

COPIES = Path("/var/cache/unmask")
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
"""Shared libraries of the system, and the time zones."""
_STORES = ("/nix/store", "/gnu/store")
_TIMEOUT_S = 60.0
_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip")
_ASK = """
import glob, importlib, json, os, sys, sysconfig
stdlib, platstdlib = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
if len(sys.argv) > 1:
    for path in glob.glob(os.path.join(platstdlib, "lib-dynload", "*.so")):
        name = os.path.basename(path).partition(".")[0]
        if not name.startswith(("_tkinter", "_test", "_xx", "xx")):
            try:
                importlib.import_module(name)
            except ImportError:
                pass
with open("/proc/self/maps") as maps:
    libraries = sorted({line.split()[-1] for line in maps if ".so" in line})
print(json.dumps({"prefix": sys.base_prefix, "platlib": sys.platlibdir, "stdlib": stdlib, "platstdlib": platstdlib,
                  "version": sys.version.split()[0], "libraries": libraries}))
"""
"""Asks an interpreter where its parts are; with an argument, its shared libraries are those of all its modules."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter that the jail's user can run."""

    path: str
    version: str
    """For instance `3.11.7`."""
    read_paths: tuple[str, ...]
    """Files and folders of the host that it reads; nothing else has to be visible."""
    environment: dict[str, str] = field(default_factory=dict)
    """What it needs to start; empty for one that stands where it was installed."""


def find_interpreter(python: str | None, uid: int | None) -> Interpreter:
    """The interpreter for a jail's user (None: this process's own). Unavailable if there is none it can run."""
    path = os.path.realpath(python or sys.executable)
    facts = _ask(path)
    if uid is None or _reachable(facts, path):
        return _in_place(path, facts)
    return _copy(path)


def _in_place(path: str, facts: dict[str, Any]) -> Interpreter:
    prefix = facts["prefix"]
    own = [path, facts["stdlib"], facts["platstdlib"], *facts["libraries"]]
    if prefix != "/usr":
        own += [f"{prefix}/lib", f"{prefix}/{facts['platlib']}"]
    own += [store for store in _STORES if path.startswith(store)]
    return Interpreter(path, facts["version"], _outermost([*_SYSTEM, *own]), _library_path())


def _library_path() -> dict[str, str]:
    """The one variable that an interpreter may need to find its shared libraries."""
    name = "LD_LIBRARY_PATH"
    return {name: os.environ[name]} if os.environ.get(name) else {}


def _outermost(paths: list[str]) -> tuple[str, ...]:
    """Those that exist, each once, without what lies below another."""
    there = sorted({path.rstrip("/") for path in paths if os.path.exists(path)})
    return tuple(path for path in there if not any(path.startswith(f"{other}/") for other in there))


@functools.cache
def _ask(path: str, *options: str) -> dict[str, Any]:
    """What an interpreter says of itself."""
    command = [path, "-I", "-S", "-c", _ASK, *options]
    try:
        done = subprocess.run(
            command, env=_library_path(), capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
        return dict(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        words = getattr(error, "stderr", None) or error
        raise Unavailable(
            f"the interpreter {path} does not run: {words}",
            "set `python` of the sandbox to a Python 3.11 or later, or leave it out",
        ) from error


def _reachable(facts: dict[str, Any], path: str) -> bool:
    """Whether everybody may run it."""
    needed = [path, f"{facts['stdlib']}/os.py", *facts["libraries"]]
    return all(readable_by_all(Path(os.path.realpath(name))) for name in needed)


def readable_by_all(path: Path) -> bool:
    """Whether the mode of a path, and of the folders above it, lets every user read it."""
    return is_open(path.parent) and bool(os.stat(path).st_mode & stat.S_IROTH)


def is_open(folder: Path) -> bool:
    """Whether every user may enter a folder, and those above it."""
    return all(os.stat(step).st_mode & stat.S_IXOTH for step in (folder, *folder.parents))


def _copy(path: str) -> Interpreter:
    """A copy that everybody may run, made on first use."""
    facts = _ask(path, "libraries")
    key = hashlib.sha256(f"{path} {os.stat(path).st_mtime_ns} {facts['version']}".encode()).hexdigest()[:12]
    home = COPIES / f"python-{facts['version']}-{key}"
    try:
        if not home.exists():
            _make_copy(home, path, facts)
    except OSError as error:
        raise Unavailable(
            f"the jail's user cannot reach {path}, and a copy at {home} cannot be made: {error}",
            "set `python` of the sandbox to an interpreter that everybody may run, for instance /usr/bin/python3, or "
            f"make {COPIES} writable for root",
        ) from error
    copied = str(home / "bin" / Path(path).name)
    return Interpreter(copied, facts["version"], _outermost([*_SYSTEM, str(home)]), {"LD_LIBRARY_PATH": f"{home}/lib"})


def _make_copy(home: Path, path: str, facts: dict[str, Any]) -> None:
    """Standard library, the shared libraries that its extension modules load, and the binary; put in place at once."""
    COPIES.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COPIES) as scratch:
        made = Path(scratch) / "python"
        stdlib = made / "lib" / Path(facts["stdlib"]).name
        shutil.copytree(facts["stdlib"], stdlib, ignore=_left_out)
        for library in _own_libraries(facts):
            shutil.copy2(library, made / "lib")
        (made / "bin").mkdir()
        shutil.copy2(path, made / "bin")
        for folder, _, names in os.walk(made):
            os.chmod(folder, 0o755)
            for name in names:
                os.chmod(os.path.join(folder, name), 0o755)
        try:
            made.rename(home)
        except OSError:
            if not home.exists():
                raise


def _own_libraries(facts: dict[str, Any]) -> Iterator[str]:
    """Shared libraries of the interpreter's own that lie outside the standard library's folder."""
    for library in facts["libraries"]:
        if library.startswith(f"{facts['prefix']}/") and not library.startswith(f"{facts['stdlib']}/"):
            yield library


def _left_out(_: str, names: list[str]) -> set[str]:
    """What a program in a jail has no use for: installed packages, tests, windows, the files to build with."""
    return {name for name in names if name in _LEFT_OUT or name.startswith("config-") or ".opt-" in name}
