"""Slots of both backends of this host, opened once; skipped only where the host lacks what a backend needs."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import Limits
from reward.sandbox.sandbox import open_sandbox, survey

LOCAL = ("namespace", "landlock")


@pytest.fixture(scope="session")
def reports():
    """What each local backend shows here."""
    return {report.backend: report for report in survey(SandboxConfig(backends=LOCAL))}


@pytest.fixture(scope="module", params=LOCAL)
def backend(request, reports):
    """Name of a backend that this host can have."""
    report = reports[request.param]
    if not report.works and not report.canaries:
        pytest.skip(f"this host cannot have the backend {report.backend}: {report.why}")
    return request.param


@pytest.fixture(scope="module")
def open_slot(backend, reports):
    """Opens slots of the backend; closes them after the file."""
    with contextlib.ExitStack() as slots:

        def open_one(**settings):
            sandbox = open_sandbox(SandboxConfig(backend=backend, **settings), proof=reports[backend])
            slots.callback(sandbox.close)
            return sandbox

        yield open_one


@pytest.fixture(scope="module")
def slot(open_slot):
    """One slot, for one program after the other."""
    return open_slot()


@pytest.fixture
def run(slot):
    """Runs a program text to its end: how it ended, stdout as text, the words on the end."""

    def run_one(text, stdin=b"", **limits):
        with slot.start(text, limits=Limits(**limits), stdin=stdin) as job:
            end, stdout, stderr = job.finish()
        return end, stdout.decode(), f"{job.detail} {stderr.decode()}"

    return run_one


@pytest.fixture(scope="session")
def descendants():
    """Lists the living processes below a process (this one if not named)."""

    def below(root=None):
        parents = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
                if fields["State"].split()[0] != "Z":
                    parents[int(fields["Pid"])] = int(fields["PPid"])
        found, wanted = set(), {root or os.getpid()}
        while wanted:
            wanted = {pid for pid, parent in parents.items() if parent in wanted} - found
            found |= wanted
        return found

    return below


@pytest.fixture(scope="session")
def wait_until():
    """Waits for a condition, for 20 s at most."""

    def wait(condition):
        deadline = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline, "the condition does not come true"
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def is_alive():
    """Whether a process runs."""

    def alive(pid):
        try:
            return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False

    return alive
