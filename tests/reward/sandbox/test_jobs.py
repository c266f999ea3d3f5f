"""A job: what a program gets, what comes back, and the word for how it ended."""

import struct

import pytest

from reward.sandbox.records import JobEnd, JobEnded, Limits

ECHO = """
import os
def exactly(n):
    data = b""
    while len(data) < n:
        part = os.read(CHANNEL_IN, n - len(data))
        if not part: raise SystemExit(0)
        data += part
    return data
while True:
    head = exactly(4)
    frame = head + exactly(int.from_bytes(head, "big"))
    while frame: frame = frame[os.write(CHANNEL_OUT, frame):]
"""


def test_program_reads_stdin_and_its_output_comes_back(run):
    text = "import sys\nprint(sys.stdin.read().upper())\nprint('aside', file=sys.stderr)"
    end, stdout, words = run(text, stdin="grün".encode())
    assert (end, stdout) == (JobEnd.FINISHED, "GRÜN\n")
    assert "aside" in words


def test_frames_of_any_allowed_size_come_back_whole(slot):
    with slot.start(ECHO, limits=Limits()) as job:
        for size in (0, 1, 70_000, 1024 * 1024):
            job.send(b"x" * size)
            assert job.receive(10.0) == b"x" * size
        assert job.finish()[0] is JobEnd.FINISHED


def test_output_printed_between_frames_blocks_nobody(slot):
    text = ECHO.replace("    head = exactly(4)", "    print('y' * 200_000)\n    head = exactly(4)")
    with slot.start(text, limits=Limits(output_kb=1024)) as job:
        for _ in range(3):
            job.send(b"z" * 500_000)
            assert len(job.receive(10.0)) == 500_000
        # printed before each of the three frames, and once more before the end of the frames is seen
        assert job.finish()[1] == (b"y" * 200_000 + b"\n") * 4


def test_channel_numbers_are_the_only_names_that_a_program_starts_with(run):
    text = "print(sorted(name for name in globals() if not name.startswith('__')), CHANNEL_IN, CHANNEL_OUT)"
    assert run(text)[1] == "['CHANNEL_IN', 'CHANNEL_OUT'] 3 4\n"


@pytest.mark.parametrize(
    ("text", "end", "words"),
    [
        ("pass", JobEnd.FINISHED, "exit status 0"),
        ("exit()", JobEnd.FINISHED, "exit status 0"),
        ("import os; os._exit(0)", JobEnd.FINISHED, "exit status 0"),
        ("import sys; sys.exit(3)", JobEnd.CRASHED, "exit status 3"),
        ("import sys; sys.exit('no')", JobEnd.CRASHED, "no"),
        ("1 / 0", JobEnd.CRASHED, "ZeroDivisionError"),
        ("def:", JobEnd.CRASHED, "SyntaxError"),
        ("import ctypes; ctypes.string_at(0)", JobEnd.CRASHED, "SIGSEGV"),
        ("def f(): f()\nf()", JobEnd.CRASHED, "RecursionError"),
        ("x = [0] * 10**10", JobEnd.MEMORY, "MemoryError"),
        ("while True: pass", JobEnd.TIMEOUT, "no end"),
        ("import time; time.sleep(60)", JobEnd.TIMEOUT, "no end"),
        ("print('x' * 70_000)", JobEnd.OUTPUT_LIMIT, "wrote more than 64 kB"),
        ("while True: print('x' * 10_000)", JobEnd.OUTPUT_LIMIT, "wrote more than 4194304 bytes"),
    ],
)
def test_end_of_a_program_has_the_right_word(run, text, end, words):
    ended, _, said = run(text, wall_s=0.5)
    assert ended is end
    assert words in said


def test_processor_time_is_limited_below_the_wall_time(run):
    end, _, words = run("while True: pass", cpu_s=1, wall_s=30)
    assert end is JobEnd.TIMEOUT
    assert "processor time" in words


def test_output_is_kept_up_to_its_limit(slot):
    with slot.start("print('ab' * 40_000)", limits=Limits(output_kb=2)) as job:
        end, stdout, _ = job.finish()
    assert (end, stdout) == (JobEnd.OUTPUT_LIMIT, b"ab" * 1024)


def test_end_of_the_program_ends_the_frames(slot):
    with slot.start("raise ValueError('early')", limits=Limits()) as job:
        with pytest.raises(JobEnded) as caught:
            job.receive(10.0)
        assert caught.value.end is JobEnd.CRASHED
        assert b"early" in job.finish()[2]


def test_frame_sent_before_the_end_is_still_received(slot):
    text = "import os; os.write(CHANNEL_OUT, (5).to_bytes(4, 'big') + b'hello')"
    with slot.start(text, limits=Limits()) as job:
        assert job.receive(10.0) == b"hello"
        with pytest.raises(JobEnded, match="finished"):
            job.receive(10.0)


def test_program_that_answers_too_late_is_stopped(slot):
    with slot.start("import time; time.sleep(60)", limits=Limits()) as job:
        with pytest.raises(JobEnded) as caught:
            job.receive(0.1)
        assert caught.value.end is JobEnd.TIMEOUT
        assert job.finish()[0] is JobEnd.TIMEOUT


def test_program_that_never_reads_its_frames_is_stopped_at_its_deadline(slot):
    with slot.start("import time; time.sleep(60)", limits=Limits(wall_s=0.5)) as job:
        # a pipe takes 64 kB at once
        with pytest.raises(JobEnded) as caught:
            job.send(b"x" * 1_000_000)
        assert caught.value.end is JobEnd.TIMEOUT


@pytest.mark.parametrize("size", [1025, 0xFFFFFFFF])
def test_frame_above_the_limit_ends_the_program(slot, size):
    text = f"import os, time\nos.write(CHANNEL_OUT, {struct.pack('>I', size)!r} + b'x' * 1000)\ntime.sleep(60)"
    with slot.start(text, limits=Limits(message_kb=1)) as job:
        with pytest.raises(JobEnded) as caught:
            job.receive(10.0)
        assert caught.value.end is JobEnd.OUTPUT_LIMIT


def test_closed_channel_is_an_end_although_the_program_runs_on(slot):
    with slot.start("import os, time\nos.close(CHANNEL_OUT)\ntime.sleep(60)", limits=Limits()) as job:
        with pytest.raises(JobEnded) as caught:
            job.receive(30.0)
        assert caught.value.end is JobEnd.CRASHED
        assert "closed its channel" in caught.value.detail


def test_frame_and_source_above_their_limits_are_refused(slot):
    with pytest.raises(ValueError, match="at most 1 kB"):
        slot.start("#" * 2000, limits=Limits(source_kb=1))
    with slot.start(ECHO, limits=Limits(message_kb=1)) as job, pytest.raises(ValueError, match="1025 bytes; at most 1"):
        job.send(b"x" * 1025)


def test_slot_takes_one_job_at_a_time(slot):
    with slot.start(ECHO, limits=Limits()), pytest.raises(RuntimeError, match="the slot has a job"):
        slot.start(ECHO, limits=Limits())


@pytest.mark.parametrize("name", Limits.__slots__)
def test_limit_of_zero_is_refused(name):
    with pytest.raises(ValueError, match=f"limit {name} is 0; it must be above 0"):
        Limits(**{name: 0})


def test_threads_up_to_the_limit_start_and_more_do_not(run):
    text = """
import threading
stop = threading.Event()
threads = [threading.Thread(target=stop.wait) for _ in range({})]
try:
    for thread in threads: thread.start()
    print("all started")
    __import__("time").sleep(0.2)
finally:
    stop.set()
"""
    assert run(text.format(16))[:2] == (JobEnd.FINISHED, "all started\n")
    assert run(text.format(400))[0] is JobEnd.CRASHED


def test_asyncio_works(run):
    text = "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 7\nprint(asyncio.run(f()))"
    assert run(text)[:2] == (JobEnd.FINISHED, "7\n")


def test_modules_that_are_not_preloaded_can_be_imported(run):
    text = "import sqlite3, csv, zoneinfo, xml.etree, bz2, ssl\nprint(zoneinfo.ZoneInfo('UTC'))"
    assert run(text)[:2] == (JobEnd.FINISHED, "UTC\n")


def test_private_folder_can_be_written_and_read(run):
    text = """
import os, shutil, tempfile
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "a")
    open(path, "w").write("kept")
    shutil.copyfile(path, path + "b")
    os.rename(path + "b", "c")
print(open("c").read(), os.listdir("."))
"""
    assert run(text)[:2] == (JobEnd.FINISHED, "kept ['c']\n")


def test_same_program_says_the_same_each_time(run):
    text = "import random\nprint(random.random(), list({'a', 'b', 'c', 'd', 'e'}))"
    assert run(text) == run(text)


def test_exit_functions_run_and_threads_are_joined(run):
    text = """
import atexit, threading, time
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("main")
"""
    assert run(text)[:2] == (JobEnd.FINISHED, "main\nthread\nexit function\n")


def test_traceback_shows_the_program_only(run):
    words = run("def f():\n    1 / 0\nf()")[2]
    assert words.count("File") == 2
    assert words.count('File "main.py"') == 2
