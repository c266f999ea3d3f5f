"""Nothing survives: from one program to the next, from a slot, from the process that owns the slots."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from reward.sandbox.records import JobEnd, Limits, SandboxError

ROOT = Path(__file__).resolve().parents[3]
OWNER = """
import sys
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import BackendReport, Limits
from reward.sandbox.sandbox import open_sandbox
sandbox = open_sandbox(SandboxConfig(backend=sys.argv[1]), proof=BackendReport(sys.argv[1], works=True))
text = "import os, time\\nopen('left', 'w')\\nos.write(CHANNEL_OUT, bytes(4))\\nwhile True: pass"
job = sandbox.start(text, limits=Limits())
job.receive(30.0)
print("running", flush=True)
sys.stdin.read()
"""


def jail_folders():
    return set(Path(tempfile.gettempdir()).glob("unmask-jail-*"))


def owner_of_a_busy_slot(backend):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, backend], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "running\n"
    return process


def test_program_finds_nothing_of_the_one_before(run):
    text = """
import json, os, sys, builtins
print(os.listdir('.'), hasattr(json, 'mark'), hasattr(builtins, 'mark'), 'mark' in sys.modules, dict(os.environ))
open('mark', 'w').write('x')
os.mkdir('folder')
json.mark = builtins.mark = sys.modules['mark'] = 1
os.environ['mark'] = '1'
"""
    for _ in range(2):
        assert run(text)[:2] == (JobEnd.FINISHED, "[] False False False {}\n")


def test_closed_slot_leaves_no_process_and_no_folder(open_slot, descendants):
    before = (descendants(), jail_folders())
    sandbox = open_slot()
    with sandbox.start("open('left', 'w').write('x')", limits=Limits()) as job:
        job.finish()
    assert descendants() != before[0]
    sandbox.close()
    assert (descendants(), jail_folders()) == before
    with pytest.raises(SandboxError, match="closed"):
        sandbox.start("pass", limits=Limits())


def test_slot_closed_while_a_program_runs_leaves_nothing(open_slot, descendants):
    before = (descendants(), jail_folders())
    sandbox = open_slot()
    sandbox.start("while True: pass", limits=Limits())
    sandbox.close()
    assert (descendants(), jail_folders()) == before


def test_left_job_is_killed(slot, descendants):
    with slot.start("pass", limits=Limits()) as job:
        job.finish()
    idle = descendants()
    with slot.start("import os\nos.write(CHANNEL_OUT, bytes(4))\nwhile True: pass", limits=Limits()) as job:
        job.receive(10.0)
        assert len(descendants()) == len(idle) + 1
    assert descendants() == idle


def test_descriptors_of_the_owner_do_not_grow(slot):
    def use():
        for text in ("print(1)", "while True: print('x' * 10_000)", "1 / 0"):
            with slot.start(text, limits=Limits(output_kb=1)) as job:
                job.finish()
        with slot.start("while True: pass", limits=Limits()):
            pass
        return len(os.listdir("/proc/self/fd"))

    assert use() == use()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_owner_that_ends_leaves_nothing(backend, descendants, wait_until, is_alive, how):
    folders = jail_folders()
    process = owner_of_a_busy_slot(backend)
    below = descendants(process.pid) - {process.pid}
    assert len(below) >= 2
    with process:
        if how is None:
            process.stdin.close()
        else:
            process.send_signal(how)
        process.wait(30)
    wait_until(lambda: not any(is_alive(pid) for pid in below))
    wait_until(lambda: jail_folders() <= folders)


def test_jail_outlives_the_thread_that_opened_it(open_slot):
    opened = []
    thread = threading.Thread(target=lambda: opened.append(open_slot()))
    thread.start()
    thread.join()
    answers = []

    def use():
        with opened[0].start("print(1)", limits=Limits()) as job:
            answers.append(job.finish()[1])

    for _ in range(3):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert answers == [b"1\n"] * 3
    assert opened[0].num_replaced == 0
