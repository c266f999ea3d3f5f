"""Programs graded in real jails: every kind of verdict, machinery that breaks, tests that are hostile themselves."""

import contextlib
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reward.code.config import CodeConfig
from reward.code.grader import CodeGrader
from reward.code.problem import Problem
from reward.code.stdio import same_output
from reward.code.verdict import Kind, Verdict
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import NoSandbox
from rollout.records import Failed

SUM = Problem(tests=("assert total([1, 2]) == 3", "assert total([]) == 0", "assert total([5, -5, 7]) == 7"))
RIGHT, WRONG = "def total(xs):\n    return sum(xs)\n", "def total(xs):\n    return len(xs)\n"
SQUARE = Problem(stdio=({"input": "3\n", "output": "9\n"}, {"input": "-4\n", "output": "16"}))


@pytest.fixture(scope="module")
def grader():
    """Small limits. On a host without a sandbox the programs here, which are our own, run without one."""
    limits = {"wall_s": 3.0, "cpu_s": 2.0, "memory_mb": 256}
    made = CodeGrader(CodeConfig(sandbox=SandboxConfig(**limits)))
    try:
        made.open()
    except NoSandbox:
        made = CodeGrader(CodeConfig(sandbox=SandboxConfig(backend="unsafe", allow_unsafe=True, **limits)))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("program", "kind", "num_passed"),
    [
        (RIGHT, Kind.PASS, 3),
        ("def total(xs):\n    print('total of', xs)\n    return sum(xs)\n", Kind.PASS, 3),
        (WRONG, Kind.WRONG, 1),
        ("def total(xs):\n    return 10 // (3 - len(xs)) and sum(xs)\n", Kind.EXCEPTION, 2),
        ("def total(xs:\n", Kind.EXCEPTION, 0),
        ("import no_such_module\n", Kind.EXCEPTION, 0),
        ("import os\ndef total(xs):\n    return sum(xs) if len(xs) < 3 else os._exit(0)\n", Kind.EXCEPTION, 2),
        ("def total(xs):\n    while len(xs) > 2: pass\n    return sum(xs)\n", Kind.TIMEOUT, 2),
        ("def total(xs):\n    return sum(xs) or len(bytearray(1 << 30))\n", Kind.MEMORY, 2),
        ("def total(xs):\n    while True: print('x' * 100_000)\n", Kind.OUTPUT_LIMIT, 0),
        ("def total(xs):\n    return 'x' * (1 << 21)\n", Kind.PROTOCOL, 0),
        ("import os\ndef total(xs):\n    os.write(4, b'\\0\\0\\0\\2{}')\n    return sum(xs)\n", Kind.PROTOCOL, 0),
    ],
)
def test_each_way_to_fail_has_its_kind(grader, program, kind, num_passed):
    verdict = grader.grade(SUM, program)
    assert (verdict.kind, verdict.num_passed, verdict.num_tests) == (kind, num_passed, 3)


def test_program_above_the_limit_is_no_program(grader):
    assert grader.grade(SUM, RIGHT + "#" * 300_000).kind is Kind.NO_CODE


@pytest.mark.parametrize(
    ("program", "kind", "num_passed"),
    [
        ("n = int(input())\nprint(n * n)\n", Kind.PASS, 2),
        ("import sys\nif __name__ == '__main__':\n    print(int(sys.stdin.read()) ** 2, '\\n')\n", Kind.PASS, 2),
        ("print(int(input()) * 3)\n", Kind.WRONG, 1),
        ("n = int(input())\nprint(n * n)\nassert n > 0\n", Kind.EXCEPTION, 1),
        ("while True: pass\n", Kind.TIMEOUT, 0),
        ("x = bytearray(1 << 30)\n", Kind.MEMORY, 0),
        ("print('9' * 10_000_000)\n", Kind.OUTPUT_LIMIT, 0),
        ("print(", Kind.EXCEPTION, 0),
    ],
)
def test_programs_that_read_and_print(grader, program, kind, num_passed):
    verdict = grader.grade(SQUARE, program)
    assert (verdict.kind, verdict.num_passed, verdict.num_tests) == (kind, num_passed, 2)


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1 2  \r\n3\n\n\n", "1 2\n3", True),
        ("", "\n", True),
        ("1  2", "1 2", False),
        (" 1", "1", False),
        ("1\n\n2", "1\n2", False),
        ("1.0", "1", False),
        ("Yes", "yes", False),
    ],
)
def test_outputs_are_equal_but_for_white_space_at_the_ends_of_lines(actual, expected, same):
    assert same_output(actual, expected) is same


def test_value_that_stalls_a_test_counts_against_the_program(grader):
    problem = Problem(tests=("assert sum(range(f())) == 3",))
    assert grader.grade(problem, "def f():\n    return 10**14\n").kind is Kind.TIMEOUT
    assert grader.grade(problem, "def f():\n    return 3\n").kind is Kind.PASS


def test_value_that_fills_the_memory_of_a_test_counts_against_the_program(grader):
    problem = Problem(tests=("assert len('x' * f()) == 3",))
    assert grader.grade(problem, "def f():\n    return 10**15\n").kind is Kind.WRONG
    assert grader.grade(problem, "def f():\n    return 3\n").kind is Kind.PASS


def test_tests_that_change_their_process_do_not_change_the_next_ones(grader):
    spoiling = Problem(tests=("import math\nmath.isclose = lambda *_: True\nassert total([1, 2]) == 3",))
    assert grader.grade(spoiling, RIGHT).kind is Kind.PASS
    close = Problem(tests=("assert math.isclose(f(), 3)",))
    assert grader.grade(close, "def f():\n    return 1.5\n").kind is Kind.WRONG


def test_tests_are_held_like_programs(grader):
    if grader.config.sandbox.backend == "unsafe":
        pytest.skip("this host has no sandbox")
    for reach in ("open('/etc/shadow').read()", "__import__('socket').socket()", "__import__('os').fork()"):
        problem = Problem(tests=(f"assert total([]) == 0\nassert {reach}",))
        assert grader.grade(problem, RIGHT).kind is Kind.WRONG


@pytest.mark.parametrize("tests", [("assert (",), ("assert len([]) == 0",), ("assert total(lambda: 1) == 0",)])
def test_tests_that_cannot_be_used_are_no_score(grader, tests):
    outcome = grader.grade(Problem(tests=tests), RIGHT)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "bad_tests"


def test_problem_without_tests_is_refused():
    with pytest.raises(ValueError, match="either tests or stdio pairs"):
        Problem()


def test_no_sandbox_is_an_error_and_never_a_score():
    refused = CodeGrader(CodeConfig(sandbox=SandboxConfig(backend="unsafe")))
    with pytest.raises(NoSandbox, match="allow_unsafe"):
        refused.grade(SUM, RIGHT)
    with pytest.raises(NoSandbox, match="allow_unsafe"):
        refused.open()


def descendants():
    """Processes below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def test_killed_jails_give_no_wrong_verdict_and_come_back():
    before = descendants()
    grader = CodeGrader(CodeConfig(num_slots=3))
    try:
        grader.open()
    except NoSandbox:
        pytest.skip("this host has no sandbox")
    done = threading.Event()
    source = random.Random(0)

    def kill():
        num_left = 12
        while num_left and not done.wait(0.1):
            jails = sorted(descendants() - before)
            if jails:
                num_left -= 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(source.choice(jails), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        programs = [RIGHT, WRONG] * 60
        with ThreadPoolExecutor(3) as pool:
            outcomes = list(pool.map(lambda program: grader.grade(SUM, program), programs))
    finally:
        done.set()
        killer.join()
    kinds = {RIGHT: Kind.PASS, WRONG: Kind.WRONG}
    for program, outcome in zip(programs, outcomes, strict=True):
        if isinstance(outcome, Failed):
            assert outcome.kind == "infra_error"
        else:
            # A program whose own process is killed from outside looks like one that died; it never looks right.
            assert outcome.kind in (kinds[program], Kind.MEMORY, Kind.EXCEPTION)
            assert not (program == WRONG and outcome.kind is Kind.PASS)
    assert [grader.grade(SUM, program).kind for program in (RIGHT, WRONG)] == [Kind.PASS, Kind.WRONG]
    grader.close()
    assert not descendants() - before


def test_jails_end_with_the_grader_that_is_forgotten():
    before = descendants()
    grader = CodeGrader(CodeConfig(sandbox=SandboxConfig(backend="unsafe", allow_unsafe=True)))
    assert isinstance(grader.grade(SUM, RIGHT), Verdict)
    assert descendants() - before
    del grader
    assert not descendants() - before
