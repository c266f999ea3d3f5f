"""Which backend is taken, what it has to show first, and what is said where none works."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from reward.sandbox.canaries import CANARIES, run_canaries
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import Limits, NoSandbox
from reward.sandbox.sandbox import open_sandbox, survey

ROOT = Path(__file__).resolve().parents[3]
NAMES = [canary.name for canary in CANARIES]
SURVEY = """
import sys
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import NoSandbox
from reward.sandbox.sandbox import open_sandbox
config = SandboxConfig(backends=("namespace", "landlock"))
try:
    sandbox = open_sandbox(config)
    print("took", sandbox.backend)
    sandbox.close()
except NoSandbox as error:
    print("refused", error)
"""
# BPF: load the number of the call; for each refused one, return EPERM; allow the rest.
FORBID = """
import ctypes, platform, struct
assert platform.machine() == "x86_64"
def forbid(*numbers):
    code = struct.pack("=HBBI", 0x20, 0, 0, 0)
    for number in numbers:
        code += struct.pack("=HBBI", 0x15, 0, 1, number) + struct.pack("=HBBI", 0x06, 0, 0, 0x50000 | 1)
    code += struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    text = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(text)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0
"""
MOUNT, LANDLOCK_CREATE = 165, 444


def outcome(text, **environment):
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_canary_holds_in_the_backend(reports, backend):
    report = reports[backend]
    assert [canary.name for canary in report.canaries if not canary.passed] == [], report.why
    assert [canary.name for canary in report.canaries] == NAMES
    assert report.works


def test_report_becomes_metadata_of_the_run(reports, backend):
    data = reports[backend].metadata()
    assert data["sandbox/backend"] == backend
    assert data["sandbox/works"] == "true"
    assert "seccomp" in data["sandbox/layers"]
    assert data["sandbox/canaries"].startswith(f"{len(NAMES)} of {len(NAMES)} passed: works, connect")


def test_canaries_escape_where_nothing_holds_them():
    """They are no formality: run with nothing around them, they get out."""
    names = ("connect", "read a secret in a file", "fork")
    sandbox = open_sandbox(SandboxConfig(backend="unsafe", allow_unsafe=True))
    results = {result.name: result for result in run_canaries(sandbox, names)}
    sandbox.close()
    assert [name for name, result in results.items() if result.passed] == []
    assert "reached tcp" in results["connect"].detail
    assert "reached a socket" in results["connect"].detail
    assert "executed" in results["fork"].detail


def test_unsafe_backend_needs_a_word_and_leaves_one(caplog):
    with pytest.raises(NoSandbox, match="allow_unsafe: true"):
        open_sandbox(SandboxConfig(backend="unsafe"))
    with caplog.at_level(logging.WARNING):
        sandbox = open_sandbox(SandboxConfig(backend="unsafe", allow_unsafe=True))
    assert "nothing holds them" in caplog.text
    with sandbox.start("print(1)", limits=Limits()) as job:
        assert job.finish()[1] == b"1\n"
    sandbox.close()


def test_unsafe_backend_is_never_chosen_by_itself():
    with pytest.raises(ValidationError):
        SandboxConfig(backends=("unsafe",), allow_unsafe=True)


def test_no_allowed_backend_is_a_refusal():
    with pytest.raises(NoSandbox, match="`backends` is empty"):
        open_sandbox(SandboxConfig(backends=()))


def test_without_bubblewrap_the_next_backend_is_taken(reports, tmp_path):
    if not reports["landlock"].works:
        pytest.skip(reports["landlock"].why)
    assert outcome(SURVEY, PATH=str(tmp_path)) == "took landlock\n"


def test_bubblewrap_that_dies_while_it_starts_is_noticed_and_leaves_nothing(wait_until, is_alive):
    """As after a kill in the wrong moment: a child is left that holds the jail's descriptors and waits for ever."""
    with tempfile.TemporaryDirectory(prefix="unmask-test-") as folder:
        os.chmod(folder, 0o777)
        fake, pids = Path(folder) / "bwrap", Path(folder) / "pids"
        fake.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! >> {pids}\necho no luck >&2\nexit 1\n")
        fake.chmod(0o755)
        text = SURVEY.replace('("namespace", "landlock")', '("namespace",)')
        assert "bubblewrap does not start a jail: jail did not start: no luck" in outcome(
            text, PATH=f"{folder}:/usr/bin"
        )
        left = pids.read_text().split()
    assert left
    wait_until(lambda: not any(is_alive(pid) for pid in left))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_where_mounts_are_forbidden_the_next_backend_is_taken(reports):
    """As in a container with the usual seccomp profile."""
    if not reports["landlock"].works:
        pytest.skip(reports["landlock"].why)
    assert outcome(f"{FORBID}\nforbid({MOUNT})\n{SURVEY}") == "took landlock\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_namespaces_hold_without_landlock(reports):
    if not reports["namespace"].works:
        pytest.skip(reports["namespace"].why)
    assert outcome(f"{FORBID}\nforbid({LANDLOCK_CREATE})\n{SURVEY}") == "took namespace\n"


def test_where_user_namespaces_are_used_up_the_next_backend_is_taken(reports):
    if not reports["landlock"].works:
        pytest.skip(reports["landlock"].why)
    inside = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", inside, sys.executable, SURVEY]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("util-linux is not installed")
    if "Operation not permitted" in done.stderr:
        pytest.skip("this host has no user namespaces to take away")
    assert done.stdout == "took landlock\n", done.stderr


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_where_nothing_works_the_refusal_says_why_and_what_to_change():
    said = outcome(f"{FORBID}\nforbid({MOUNT}, {LANDLOCK_CREATE})\n{SURVEY}")
    assert said.startswith("refused no sandbox for untrusted programs works on this host; tried:")
    for words in ("namespace: ", "landlock: no Landlock: the container forbids the call (EPERM)", "to change that: "):
        assert words in said
    assert "bubblewrap" in said


def test_survey_names_every_backend_and_what_it_lacks():
    reports = survey(SandboxConfig(backends=("remote", "gvisor")))
    assert [report.backend for report in reports] == ["remote", "gvisor"]
    assert (reports[0].works, reports[0].why) == (False, "no remote_url is set")
    assert reports[0].fix.startswith("set remote_url")


def test_interpreter_that_does_not_run_is_named(backend):
    with pytest.raises(NoSandbox, match="the interpreter /nowhere/python does not run"):
        open_sandbox(SandboxConfig(backend=backend, python="/nowhere/python"))


def test_backend_that_lets_a_canary_out_is_refused(monkeypatch, backend):
    """A canary that reports an escape is enough."""
    import dataclasses

    escaped = dataclasses.replace(CANARIES[0], text="print('reached the moon')")
    monkeypatch.setattr("reward.sandbox.canaries.CANARIES", (escaped,))
    with pytest.raises(NoSandbox, match=r"canary `works`: finished .*reached the moon"):
        open_sandbox(SandboxConfig(backend=backend))
