"""A run in which nothing ends any more says what everybody waits for, and ends."""

import itertools
import signal
import subprocess
import sys
import threading

import pytest

from cluster.watchdog import DUMP_FILE, STATUS, StallError, watch


def test_a_stall_names_what_is_waited_for_and_shows_the_stacks(tmp_path):
    with (
        pytest.raises(StallError, match=r"(?s)nothing has ended for 0\.2 s.*rollout-0 works on 3 items"),
        watch(lambda: 1, lambda: ["rollout-0 works on 3 items"], timeout_s=0.2, folder=tmp_path),
    ):
        threading.Event().wait(60)
    dump = (tmp_path / DUMP_FILE).read_text()
    assert dump.startswith("rollout-0 works on 3 items\n")
    assert "test_a_stall_names_what_is_waited_for" in dump


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    ticks, seen_often = itertools.count(), threading.Event()

    def progress():
        number = next(ticks)
        if number > 8:  # at a look every quarter of the deadline, twice the deadline
            seen_often.set()
        return number

    with watch(progress, list, timeout_s=0.2, folder=tmp_path):
        assert seen_often.wait(60)
    assert not (tmp_path / DUMP_FILE).exists()


def test_somebody_elses_interrupt_is_not_a_stall(tmp_path):
    with pytest.raises(KeyboardInterrupt), watch(lambda: 1, list, timeout_s=60, folder=tmp_path):
        raise KeyboardInterrupt


def test_a_run_that_ignores_interrupts_as_in_the_background_of_a_script_is_freed_too(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(StallError), watch(lambda: 1, list, timeout_s=0.2, folder=tmp_path):
            threading.Event().wait(60)
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_of_signals_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    with watch(lambda: 1, list, timeout_s=60, folder=tmp_path):
        assert signal.getsignal(signal.SIGUSR1) != before
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_driver_that_does_not_react_is_ended_with_its_own_status(tmp_path):
    program = (
        "import signal, sys, time, pathlib\n"
        "from cluster.watchdog import watch\n"
        "with watch(lambda: 1, list, timeout_s=0.2, grace_s=0.2, folder=pathlib.Path(sys.argv[1])):\n"
        "    signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        "    time.sleep(100)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=120, check=False)
    assert ended.returncode == STATUS
