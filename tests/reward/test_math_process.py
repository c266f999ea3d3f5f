"""The worker process: deadlines, deaths, threads, and what is left behind (nothing)."""

import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reward.math import Verifier
from reward.math import process as process_module
from reward.math.process import MathProcess, Reply

ROOT = Path(__file__).parents[2]
PAIRS = [
    ("2\\sqrt3", "\\sqrt{12}", "equal"),
    ("2\\sqrt3", "\\sqrt{13}", "different"),
    ("(x-1)(x+1)", "x^2-1", "equal"),
    ("(2,\\infty)", "x \\ge 2", "different"),
    ("15\\mbox{ cm}^2", "15", "equal"),
    ("1/2x", "\\frac{x}{3}", "undecided"),
]


@pytest.fixture
def process():
    made = MathProcess()
    yield made
    made.close()


def is_gone(pid):
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def children():
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_answers_come_from_one_process_that_starts_with_the_first_question(process):
    assert process.pid is None
    for gold, answer, expected in PAIRS:
        assert process.ask(gold, answer).outcome == expected
    first = process.pid
    process.ask("x", "y")
    assert process.pid == first


def test_a_worker_that_is_killed_is_replaced_and_the_question_asked_again(process):
    process.start()
    old = process.pid
    os.kill(old, signal.SIGKILL)
    assert process.ask("2\\sqrt3", "\\sqrt{12}") == Reply("equal")
    assert process.pid != old
    assert is_gone(old)


def test_a_late_worker_is_killed_and_the_answer_is_a_timeout_not_a_verdict():
    process = MathProcess(timeout_s=1e-9)
    process.start()
    old = process.pid
    assert process.ask("2\\sqrt3", "\\sqrt{12}").outcome == "timeout"
    assert process.pid is None
    assert is_gone(old)


def test_a_stopped_worker_is_late_and_the_next_one_answers():
    process = MathProcess(timeout_s=0.5)
    process.start()
    os.kill(process.pid, signal.SIGSTOP)
    assert process.ask("2\\sqrt3", "\\sqrt{12}").outcome == "timeout"
    assert Verifier(process).judge("2\\sqrt3", "\\sqrt{13}").outcome in ("different", "timeout")
    process.close()


def test_a_worker_that_can_not_start_is_an_error_and_says_so_when_opened(monkeypatch):
    monkeypatch.setattr(process_module, "_BOOT", "raise SystemExit(3)")
    process = MathProcess()
    assert process.ask("2\\sqrt3", "\\sqrt{12}").outcome == "error"
    with pytest.raises(RuntimeError, match="did not start"):
        process.start()
    assert process.pid is None


def test_a_worker_that_talks_nonsense_is_an_error(monkeypatch):
    monkeypatch.setattr(process_module, "_BOOT", "print('x' * 100, flush=True); import time; time.sleep(60)")
    assert MathProcess().ask("2\\sqrt3", "\\sqrt{12}").outcome == "error"


def test_a_worn_out_worker_is_replaced():
    process = MathProcess(max_tasks=2)
    pids = []
    for _ in range(4):
        assert process.ask("x+y", "y+x").outcome == "equal"
        pids.append(process.pid)
    process.close()
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert all(map(is_gone, pids))


def test_threads_get_the_verdicts_of_the_main_thread(process):
    expected = [process.ask(gold, answer).outcome for gold, answer, _ in PAIRS]
    found = {}

    def ask(name):
        found[name] = [process.ask(gold, answer).outcome for gold, answer, _ in PAIRS * 5]

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[name] for name in range(4)] == [expected * 5] * 4


def test_a_worker_outlives_the_thread_that_started_it(process):
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join(60)
    pid = process.pid
    assert process.ask("x+y", "y+x").outcome == "equal"
    assert process.pid == pid


def test_killing_workers_under_load_gives_no_wrong_verdict_and_leaves_nothing_behind():
    before, files = children(), open_files()
    verifier = Verifier()
    num_kills, found, done = 8, [], threading.Event()

    def ask():
        while not done.is_set():
            for gold, answer, expected in PAIRS:
                found.append((verifier.judge(gold, answer).outcome, expected))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    killed = set()
    while len(killed) < num_kills:
        pid = verifier.process.pid
        if pid is not None and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
    answered = len(found)  # from here on workers live
    wait_until(lambda: len(found) > answered + 2 * len(PAIRS))
    done.set()
    for thread in threads:
        thread.join(60)
    assert {outcome for outcome, expected in found if outcome != expected} <= {"error"}
    assert verifier.judge("2\\sqrt3", "\\sqrt{12}").outcome == "equal"
    verifier.close()
    assert children() == before
    assert open_files() == files
    assert all(map(is_gone, killed))


def test_a_worker_ends_when_its_parent_is_killed():
    code = (
        "import time; from reward.math import Verifier; v = Verifier(); v.judge('x+y', 'y+x'); "
        "print(v.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        assert not is_gone(worker)
        parent.kill()
    wait_until(lambda: is_gone(worker))


def test_a_busy_worker_without_a_parent_is_ended_by_the_kernel():
    code = "from reward.math.child import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as worker:
        assert select.select([worker.stdout], [], [], 60)[0]
        # The timer runs five seconds longer than the parent's deadline: a tenth of a millisecond is left of them.
        body = json.dumps({"id": 1, "gold": "x^9+y^9+z^9", "answer": "(x+y+z)^9", "seconds": -4.9999}).encode()
        worker.stdin.write(struct.pack(">I", len(body)) + body)
        assert worker.wait(60) == -signal.SIGALRM


def test_the_worker_has_one_thread_bounded_memory_and_none_of_the_environment(monkeypatch, process):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    # Only Math-Verify reads this, so it is loaded.
    assert process.ask("\\frac{1}{7}\\triangle", "\\frac{\\triangle}{7}").outcome in ("equal", "undecided")
    folder = Path(f"/proc/{process.pid}")
    assert len(list((folder / "task").iterdir())) == 1
    assert b"SECRET_TOKEN" not in (folder / "environ").read_bytes()
    limits = {line[:26].strip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()[1:]}
    assert limits["Max address space"] == "1500000000"
    assert limits["Max core file size"] == "0"


def test_a_copy_in_another_process_has_a_worker_of_its_own(process):
    process.start()
    copy = pickle.loads(pickle.dumps(Verifier(process)))
    assert copy.process.pid is None
    assert copy.judge("2\\sqrt3", "\\sqrt{12}").outcome == "equal"
    assert copy.process.pid != process.pid
    copy.close()


def test_a_verifier_that_is_forgotten_takes_its_worker_with_it():
    verifier = Verifier()
    verifier.open()
    pid = verifier.process.pid
    del verifier
    assert is_gone(pid)
