"""Every attack, twice in the same slot, in several slots at once, with clean programs between and beside them.

`run` returns what was wrong, as texts; nothing is the expected outcome. As a program it prints them as JSON, so that
the campaign can be run as another user: `python campaign.py BACKEND NUM_SLOTS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from reward.code.config import CodeConfig
from reward.code.problem import Problem
from reward.code.slot import Slot
from reward.code.verdict import Kind
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import BackendReport, Limits

ROOT = Path(__file__).resolve().parents[3]
ATTACK_LIMITS = Limits(wall_s=0.5, cpu_s=1, memory_mb=256, tmp_mb=4, num_threads=8)
CLEAN_LIMITS = Limits(wall_s=60, cpu_s=60)
MAX_GROWTH_MB = 64
_TIMES = 2
_SUBREAPER = 36


def module(name: str) -> ModuleType:
    """A file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


target = module("target")


def attacks(planted: dict[str, str]) -> list[tuple[str, Problem, str]]:
    """Name, problem and program of each attack."""
    forging, bombs, reaching, reading = (module(name) for name in ("forging", "bombs", "reaching", "reading"))
    programs = {**forging.FORGING, **bombs.BOMBS, **reaching.REACHING, **reaching.LEAVING}
    found = [(name, target.SUM, program) for name, program in programs.items()]
    found += [(f"stdio: {name}", target.ECHO, program) for name, program in reading.READING.items()]
    return [(name, problem, _filled(program, planted)) for name, problem, program in found]


def _filled(program: str, planted: dict[str, str]) -> str:
    for name, value in planted.items():
        program = program.replace(f"@{name}", value)
    return program


@contextlib.contextmanager
def planted_secrets() -> Iterator[dict[str, str]]:
    """Things around the grader that no program may get hold of."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planted-")))
        path = folder / "secret"
        path.write_text(target.SECRET)
        os.environ["UNMASK_SECRET"] = target.SECRET
        stack.callback(os.environ.pop, "UNMASK_SECRET")
        tcp, abstract, in_folder = (
            stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
        )
        tcp.bind(("127.0.0.1", 0))
        name = f"unmask-{os.getpid()}"
        abstract.bind(f"\0{name}")
        in_folder.bind(str(folder / "socket"))
        for listening in (tcp, abstract, in_folder):
            listening.listen()
        command = [sys.executable, "-c", "input()", target.SECRET]
        bystander = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL))
        stack.callback(bystander.kill)
        yield {
            "secret_path": str(path),
            "secret": target.SECRET,
            "mark": target.MARK,
            "folder": str(folder),
            "port": str(tcp.getsockname()[1]),
            "unix": name,
            "parent": str(os.getpid()),
            "root": str(ROOT),
        }


class Campaign:
    """Slots of one backend and what went wrong in them."""

    def __init__(self, backend: str, num_slots: int) -> None:
        self.problems: list[str] = []
        self._config = CodeConfig(sandbox=SandboxConfig.model_validate({"backend": backend}))
        self._num_slots = num_slots
        self._pending: queue.SimpleQueue[tuple[str, Problem, str]] = queue.SimpleQueue()
        self._done = threading.Event()

    def run(self) -> None:
        """All attacks."""
        first = Slot(self._config)
        slots = [first, *(Slot(self._config, proof=first.report) for _ in range(self._num_slots))]
        try:
            for slot in slots:
                self._clean(slot, "at the start")
            megabytes = descendants_mb()
            with planted_secrets() as planted:
                for attack in attacks(planted):
                    self._pending.put(attack)
                self._attack_all(slots[1:], slots[0])
            for slot in slots:
                self._clean(slot, "at the end")
            if descendants_mb() > megabytes + MAX_GROWTH_MB:
                self.problems.append(f"memory grew from {megabytes:.0f} to {descendants_mb():.0f} MB")
        finally:
            for slot in slots:
                slot.close()

    def _attack_all(self, slots: list[Slot], beside: Slot) -> None:
        workers = [threading.Thread(target=self._attack, args=(slot,)) for slot in slots]
        clean = threading.Thread(target=self._beside, args=(beside,))
        for thread in (clean, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        self._done.set()
        clean.join()

    def _attack(self, slot: Slot) -> None:
        while True:
            try:
                name, problem, program = self._pending.get_nowait()
            except queue.Empty:
                return
            for _ in range(_TIMES):
                self._outcome(slot, name, problem, program)
            self._clean(slot, f"after `{name}`")

    def _outcome(self, slot: Slot, name: str, problem: Problem, program: str) -> None:
        try:
            verdict = slot.run(problem, program, limits=ATTACK_LIMITS)
        except Exception as error:  # noqa: BLE001 - no attack may break the grader
            self.problems.append(f"`{name}`: no verdict but {type(error).__name__}: {error}")
            return
        if verdict.kind is Kind.PASS:
            self.problems.append(f"`{name}` passed")

    def _beside(self, slot: Slot) -> None:
        while not self._done.is_set():
            self._clean(slot, "beside the attacks")

    def _clean(self, slot: Slot, when: str) -> None:
        for problem, program, expected in (
            (target.SUM, target.RIGHT, Kind.PASS),
            (target.SUM, target.WRONG, Kind.WRONG),
            (target.ECHO, target.RIGHT_ECHO, Kind.PASS),
        ):
            verdict = slot.run(problem, program, limits=CLEAN_LIMITS)
            if verdict.kind is not expected:
                self.problems.append(f"a clean program {when}: {verdict}")


def children() -> set[int]:
    """Processes below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def descendants_mb() -> float:
    """Resident memory of the processes below this one."""
    total = 0
    for pid in children():
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def left_behind(before: set[int], *, patience_s: float = 5) -> list[str]:
    """Processes, files and shared memory of the attacks that are still there."""
    found = [f"process {pid} is left" for pid in _still_running(before, patience_s)]
    for folder in (tempfile.gettempdir(), "/dev/shm", "/var/tmp", "/", str(ROOT)):
        pattern = f"*{target.MARK}*"
        found += [f"file {path} is left" for path in [*Path(folder).glob(pattern), *Path(folder).glob(f"*/{pattern}")]]
    tables = [path.read_text() for path in Path("/proc/sysvipc").glob("*")] if Path("/proc/sysvipc").exists() else []
    return found + [f"System V object is left: {table}" for table in tables if str(0x4711) in table.split()]


def _still_running(before: set[int], patience_s: float) -> set[int]:
    """Processes that were not there before and do not end; those that have ended are waited for."""
    deadline = time.monotonic() + patience_s
    while True:
        for pid in children() - before:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        running = children() - before
        if not running or time.monotonic() > deadline:
            return running


def run(backend: str, num_slots: int) -> list[str]:
    """What was wrong: attacks that passed, clean programs that did not, things left behind."""
    libc = ctypes.CDLL(None)
    before = children()
    # Orphans come to this process, so that none is missed.
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        campaign = Campaign(backend, num_slots)
        campaign.run()
        return campaign.problems + left_behind(before)
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)


def report_of(backend: str) -> BackendReport:
    """What a backend shows on this host."""
    from reward.sandbox.sandbox import survey

    return survey(SandboxConfig.model_validate({"backend": backend}))[0]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], int(sys.argv[2]))))
