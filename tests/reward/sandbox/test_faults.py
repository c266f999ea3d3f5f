"""Jails that are killed, stopped or starved: the slot comes back, no answer is made up, nobody waits for ever."""

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from reward.sandbox.records import JobEnd, Limits, SandboxError

BUSY = "import os\nos.write(CHANNEL_OUT, bytes(4))\nwhile True: pass"


def servers(descendants):
    """Process ids of the fork servers below this process; a program that runs has the same command line."""
    parents = {}
    for pid in descendants() - {os.getpid()}:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"-c" in command and b"bwrap" not in command[0]:
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent not in parents]


def answer(slot, text="print(6 * 7)"):
    with slot.start(text, limits=Limits()) as job:
        return job.finish()[1]


def test_slot_comes_back_after_its_idle_server_was_killed(open_slot, descendants, wait_until, is_alive):
    before = set(servers(descendants))
    sandbox = open_slot()
    assert answer(sandbox) == b"42\n"
    killed = set(servers(descendants)) - before
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in killed))
    assert answer(sandbox) == b"42\n"
    assert sandbox.num_replaced == 1
    sandbox.close()
    assert set(servers(descendants)) == before


def test_server_killed_during_a_program_is_an_error_and_no_end(open_slot, descendants):
    before = set(servers(descendants))
    sandbox = open_slot()
    assert answer(sandbox) == b"42\n"
    killed = set(servers(descendants)) - before
    with sandbox.start(BUSY, limits=Limits()) as job:
        job.receive(10.0)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="its server has died"):
            job.receive(10.0)
        with pytest.raises(SandboxError):
            job.finish()
    assert answer(sandbox) == b"42\n"
    assert sandbox.num_replaced == 1
    sandbox.close()
    assert set(servers(descendants)) == before


def test_jail_killed_from_outside_during_a_program_is_replaced(open_slot, descendants):
    before = descendants()
    sandbox = open_slot()
    assert answer(sandbox) == b"42\n"
    with sandbox.start(BUSY, limits=Limits()) as job:
        job.receive(10.0)
        for pid in descendants() - before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxError):
            job.finish()
    assert answer(sandbox) == b"42\n"
    sandbox.close()
    assert descendants() == before


def test_server_that_hangs_does_not_hang_its_owner(open_slot, descendants, monkeypatch):
    monkeypatch.setattr("reward.sandbox.job._END_TIMEOUT_S", 0.3)
    before = set(servers(descendants))
    sandbox = open_slot()
    assert answer(sandbox) == b"42\n"
    hung = set(servers(descendants)) - before
    with sandbox.start(BUSY, limits=Limits(wall_s=0.5)) as job:
        job.receive(10.0)
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(SandboxError, match="timed out"):
            job.finish()
    assert answer(sandbox) == b"42\n"
    sandbox.close()
    assert set(servers(descendants)) == before


HOSTILE = ("import os\nwhile True: os.fork()", "x = [0] * 10**10", "import os\nos.kill(os.getppid(), 9)", "1 / 0")


class Client(threading.Thread):
    """Runs hostile and clean programs in turn in one slot; keeps what was wrong and counts what was right."""

    def __init__(self, number, sandbox):
        super().__init__()
        self.number, self.sandbox, self.wrong, self.num_right = number, sandbox, [], 0

    def run(self):
        for turn in range(12):
            try:
                self.turn(HOSTILE[turn % 4])
            except SandboxError:
                continue

    def turn(self, text):
        with self.sandbox.start(text, limits=Limits(wall_s=5.0)) as job:
            if job.finish()[0] not in (JobEnd.CRASHED, JobEnd.MEMORY):
                self.wrong.append(text)
        got = answer(self.sandbox, f"print(sum(i * {self.number} for i in range(1000)))")
        # 0 + 1 + .. + 999 = 499500
        if got == b"%d\n" % (499_500 * self.number):
            self.num_right += 1
        else:
            self.wrong.append(got)


def test_eight_slots_stay_right_while_servers_are_killed(open_slot, descendants):
    clients = [Client(number, open_slot()) for number in range(8)]
    for client in clients:
        assert answer(client.sandbox) == b"42\n"
        client.start()
    while any(client.is_alive() for client in clients):
        for pid in servers(descendants)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        clients[0].join(0.3)
    assert [client.wrong for client in clients] == [[]] * 8
    assert sum(client.num_right for client in clients) > 48
    assert [answer(client.sandbox) for client in clients] == [b"42\n"] * 8
    assert sum(client.sandbox.num_replaced for client in clients) > 0
