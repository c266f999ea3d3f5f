"""No attack on the graders of programs passes, clean programs stay right beside them, and nothing is left behind."""

import importlib.util
import os
import site
import subprocess
from pathlib import Path

import pytest

from reward.code.config import CodeConfig
from reward.code.slot import Slot
from reward.code.verdict import Kind
from reward.sandbox.config import SandboxConfig
from reward.sandbox.interpreter import find_interpreter
from reward.sandbox.records import JobEnd, Limits, NoSandbox
from reward.sandbox.sandbox import open_sandbox

_spec = importlib.util.spec_from_file_location("campaign", Path(__file__).with_name("campaign.py"))
campaign = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(campaign)

BACKENDS = ("namespace", "landlock")
ORDINARY = 65534
TRUSTED = SandboxConfig(backend="unsafe", allow_unsafe=True)


def needs(backend):
    try:
        open_sandbox(SandboxConfig(backend=backend)).close()
    except NoSandbox as error:
        pytest.skip(f"this host has no sandbox backend {backend}: {error}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_attack_passes_and_nothing_is_left_behind(backend):
    needs(backend)
    assert campaign.run(backend, 4) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_attack_passes_in_eight_slots_at_once(backend):
    needs(backend)
    assert campaign.run(backend, 8) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_attack_passes_when_the_grader_is_an_ordinary_user(backend):
    if os.getuid() != 0:
        pytest.skip("only root can become another user; the other tests run as an ordinary one here")
    needs(backend)
    python = find_interpreter(None, ORDINARY)
    paths = [str(campaign.ROOT), *site.getsitepackages()]
    done = subprocess.run(
        [python.path, "-B", campaign.__file__, backend, "8"],
        env={**python.environment, "PYTHONPATH": ":".join(paths), "PATH": os.environ["PATH"]},
        user=ORDINARY,
        group=ORDINARY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]"), done.stderr[-2000:]


def test_there_are_more_than_sixty_attacks_and_no_two_are_the_same():
    with campaign.planted_secrets() as planted:
        found = campaign.attacks(planted)
    assert len({name for name, _, _ in found}) == len({(id(problem), program) for _, problem, program in found})
    assert len({name for name, _, _ in found}) == len(found)
    assert len(found) > 60
    assert not [name for name, _, program in found if "@secret" in program or "@port" in program]


def test_probes_reach_what_nothing_holds_back():
    # A probe that fails everywhere would show nothing; these do no harm where they succeed.
    names = ("secret file", "secret file by /proc", "the grader's source", "TCP", "UDP", "abstract socket")
    names += ("socket in a folder", "a server of its own", "arguments of every process", "shell")
    probes = campaign.module("reaching").REACHING
    slot = Slot(CodeConfig(sandbox=TRUSTED))
    try:
        with campaign.planted_secrets() as planted:
            verdicts = {name: slot.run(campaign.target.SUM, campaign._filled(probes[name], planted)) for name in names}
    finally:
        slot.close()
    assert {name: verdict.kind for name, verdict in verdicts.items()} == dict.fromkeys(names, Kind.PASS)


def test_a_grader_that_trusts_the_exit_status_is_fooled_by_many_of_them():
    # Program and asserts in one interpreter, success if it exits with 0: what the tests' own process is there against.
    forging = campaign.module("forging")
    programs = {**forging.EXITS, **forging.EQUALS}
    asserts = "\n".join(campaign.target.SUM.tests)
    sandbox = open_sandbox(TRUSTED)
    fooled = []
    try:
        for name, program in programs.items():
            with sandbox.start(f"{program}\n{asserts}\n", limits=Limits(wall_s=5)) as job:
                fooled += [name] if job.finish()[0] is JobEnd.FINISHED else []
    finally:
        sandbox.close()
    assert len(fooled) >= 15
    assert {"exit 0 on import", "hard exit 0 in the call", "equal to all"} <= set(fooled)


def test_campaign_reports_a_program_that_passes(monkeypatch):
    right = [("no attack at all", campaign.target.SUM, campaign.target.RIGHT)]
    monkeypatch.setattr(campaign, "attacks", lambda planted: right)
    monkeypatch.setattr(campaign, "CLEAN_LIMITS", Limits(wall_s=60))
    backend = next((name for name in BACKENDS if campaign.report_of(name).works), None)
    if backend is None:
        pytest.skip("this host has no sandbox")
    assert campaign.run(backend, 1) == ["`no attack at all` passed"] * 2


def test_process_that_stays_is_found():
    before = campaign.children()
    with subprocess.Popen(["sleep", "60"]) as staying:
        found = campaign.left_behind(before, patience_s=0.2)
        staying.kill()
    assert found == [f"process {staying.pid} is left"]
