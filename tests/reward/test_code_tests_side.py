"""The tests' side against a candidate in this process: what passes, what fails, and what a broken answer does.

The programs here are our own, so they may run without a jail.
"""

import json

import pytest

from reward.code.child import Candidate
from reward.code.plan import Plan
from reward.code.problem import Problem
from reward.code.protocol import dumps, loads
from reward.code.stand_in import ANSWER, ENDED
from reward.code.trusted import run_item

ADD = "def add(a, b):\n    return a + b\n"


class Wire:
    """Carries requests to a candidate; keeps what was sent to it."""

    def __init__(self, change=None):
        self.candidate = Candidate()
        self.requests = []
        self._change = change or (lambda number, request, reply: reply)

    def __call__(self, payload):
        request = loads(payload)
        self.requests.append(request)
        reply = ANSWER + dumps(self.candidate.answer(request))
        return self._change(len(self.requests), request, reply)


def report(program, *, wire=None, **problem):
    return run_item(Problem(**problem).item(program), wire or Wire())


def kinds(program, *tests, **problem):
    """Verdict of each test, and why the row is no good if it is not."""
    found = report(program, tests=tests, **problem)
    return found["fault"] or [kind for kind, _, _ in found["results"]]


def test_each_assert_is_a_test():
    assert kinds(ADD, "assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add(2, 2) == 4") == [
        "pass",
        "wrong",
        "pass",
    ]


def test_an_expected_value_never_crosses():
    wire = Wire()
    report(
        ADD, wire=wire, tests=("assert add(1, 2) == 4711", "assert 4712 == add(3, 4)", "assert add(5, 6) in {4713: 1}")
    )
    sent = json.dumps(wire.requests)
    assert [request["op"] for request in wire.requests] == ["load", "call", "call", "call", "bye"]
    assert "471" not in sent
    assert "assert" not in sent


def test_names_of_requests_differ():
    wire = Wire()
    report(ADD, wire=wire, tests=("assert add(1, 2) == 3",) * 20)
    assert len({request["id"] for request in wire.requests}) == 22


def test_what_the_program_raises_is_an_exception_of_the_test():
    program = "def f(n):\n    if n < 0:\n        raise ValueError(f'no {n}')\n    return n\n"
    caught = "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'no -1'\nelse:\n    assert False"
    assert kinds(program, "assert f(-1) == 0", caught, "assert f(2) == 2") == ["exception", "pass", "pass"]


def test_a_test_that_cannot_use_the_result_is_wrong():
    assert kinds("def f():\n    return None\n", "assert f()[0] == 1") == ["wrong"]


@pytest.mark.parametrize(
    ("raised", "kind"), [("MemoryError", "memory"), ("PermissionError", "permission"), ("OSError", "exception")]
)
def test_some_exceptions_have_a_kind_of_their_own(raised, kind):
    assert kinds(f"def f():\n    raise {raised}\n", "assert f() == 1") == [kind]


def test_a_program_cannot_end_the_cases_of_a_test_by_an_exception():
    tests = ("assert all(map(f, [1, 2]))", "assert list(map(f, [1, 2])) == []", "assert not any(f(x) for x in [1])")
    for raised in ("StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt"):
        assert set(kinds(f"def f(x):\n    raise {raised}\n", *tests)) == {"exception"}


def test_a_program_that_does_not_compile_fails_every_test():
    found = report("def f(:", tests=("assert f() == 1", "assert f() == 2"))
    assert [kind for kind, _, _ in found["results"]] == ["exception", "exception"]
    assert found["results"][0][1].startswith("SyntaxError")


def test_a_missing_function_is_an_exception():
    found = report("x = 1", tests=("assert f() == 1",))
    assert found["results"][0][:2] == ("exception", "NameError: name 'f' is not defined")


def test_a_test_that_asks_for_nothing_is_marked():
    found = report(ADD, tests=("assert True", "assert add(1, 1) == 2"))
    assert [called for _, _, called in found["results"]] == [False, True]


def test_a_function_with_the_name_of_a_built_in_one_is_the_candidates():
    tests = ("assert sum(10, 15) == 6", "assert len([1, 2]) == 2")
    assert kinds("def sum(a, b):\n    return 6\n", *tests, reference="def sum(a, b): pass") == ["pass", "pass"]
    assert kinds("def sum(a, b):\n    return 6\n", *tests, entry_point="sum") == ["pass", "pass"]
    assert kinds("def sum(a, b):\n    return 6\n", *tests) == ["wrong", "pass"]


def test_modules_are_there_without_an_import_unless_the_program_has_their_name():
    assert kinds("def f(x):\n    return x\n", "assert math.isclose(f(math.pi), 3.14159265, rel_tol=1e-8)") == ["pass"]
    assert kinds("def time():\n    return 5\n", "assert time() == 5", reference="def time(): pass") == ["pass"]


def test_imports_of_the_reference_are_there_for_the_tests():
    reference = "from collections import Counter as C\nimport no_such_module\ndef f(x): pass"
    assert kinds("def f(x):\n    return {'a': x}\n", "assert f(2) == C('aa')", reference=reference) == ["pass"]


def test_setup_runs_before_the_tests_and_may_use_the_program():
    assert kinds(ADD, "assert x == 5", "assert add(x, 1) == 6", setup="x = add(2, 3)") == ["pass", "pass"]


def test_setup_that_breaks_without_the_program_is_the_rows_fault():
    assert kinds(ADD, "assert add(1, 2) == 3", setup="1 / 0") == "BadTests: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "problem",
    [
        {"tests": ("assert (",)},
        {"tests": ("assert add(1, 2) == 3",), "setup": "("},
        {"tests": ("assert add(1, 2) == 3",), "prelude": "1 / 0"},
        {"tests": ("assert add(1, 2) == 3",), "reference": "def ("},
        {"tests": ("assert add(lambda: 1, 2) == 3",)},
        {"tests": ("import sys\nsys.exit(0)",)},
        {"tests": ("def check(candidate): assert (",), "style": "check", "entry_point": "add"},
        {"tests": ("x = 1",), "style": "check", "entry_point": "add"},
        {"tests": ("def test_add(tmp_path):\n    assert add(1, 2) == 3",), "style": "pytest"},
    ],
)
def test_tests_that_cannot_be_used_are_the_rows_fault(problem):
    assert report(ADD, **problem)["fault"]


STACK = """
class Stack:
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, item):
        self.items.append(item)
        return self
    def pop(self):
        return self.items.pop()
    def __len__(self):
        return len(self.items)
    def __contains__(self, item):
        return item in self.items
    def __iter__(self):
        return iter(self.items)
    def __getitem__(self, index):
        return self.items[index]
    def __str__(self):
        return 'Stack(%s)' % self.items
    def __eq__(self, other):
        return True
def make():
    return Stack([1])
def top(stack):
    return stack.items[-1]
"""


def test_objects_of_a_class_of_the_tests_have_methods_and_lengths():
    tests = (
        "s = Stack()\ns.push(1).push(2)\nassert s.pop() == 2\nassert len(s) == 1",
        "s = Stack([3, 4])\nassert 3 in s and s[1] == 4 and list(s) == [3, 4] and str(s) == 'Stack([3, 4])'",
        "s = Stack([3])\nassert s.items == [3]\ns.items = [5]\nassert top(s) == 5",
        "s = Stack()\nassert s.push(1) is s",
    )
    assert kinds(STACK, *tests) == ["pass"] * 4


def test_objects_equal_only_themselves_whatever_their_class_says():
    assert kinds(STACK, "assert Stack() == Stack()", "assert Stack() == 5", "assert make() == [1]") == ["wrong"] * 3


def test_an_object_that_a_function_returned_gets_no_arguments():
    program = "class R:\n    value = 6\n    def equals(self, other):\n        return True\ndef f():\n    return R()\n"
    tests = (
        "assert f().equals(6)",
        "assert f().value == 6",
        "assert len(f()) == 1",
        "assert 6 in f()",
        "assert f() < 7",
    )
    assert kinds(program, *tests) == ["wrong", "pass", "wrong", "wrong", "wrong"]


def test_a_lower_case_name_is_no_class():
    program = "class f:\n    def equals(self, other):\n        return True\n"
    assert kinds(program, "assert f().equals(6)") == ["wrong"]
    assert kinds(program, "assert f().equals(6)", reference="class f: pass") == ["pass"]


def test_a_returned_function_can_be_called():
    assert kinds("def adder(a):\n    return lambda b: a + b\n", "assert adder(1)(2) == 3") == ["pass"]


@pytest.mark.parametrize(
    "change",
    [
        lambda number, request, reply: ANSWER + dumps({"id": "0" * 16, "value": 3}),
        lambda number, request, reply: ANSWER + dumps({"id": request["id"], "value": 3, "verdict": "pass"}),
        lambda number, request, reply: ANSWER + dumps({"id": request["id"], "value": 3, "error": ["E", ""]}),
        lambda number, request, reply: ANSWER + dumps({"id": request["id"]}),
        lambda number, request, reply: ANSWER + dumps({"id": request["id"], "error": "E"}),
        lambda number, request, reply: ANSWER + dumps({"id": request["id"], "error": ["E", 1]}),
        lambda number, request, reply: ANSWER + dumps({"id": request["id"], "value": ["nope"]}),
        lambda number, request, reply: ANSWER + b'{"results": [["pass", "", true]]}',
        lambda number, request, reply: ANSWER + b"[" * 100_000,
        lambda number, request, reply: ANSWER,
    ],
)
def test_one_bad_answer_ends_the_program_for_good(change):
    wire = Wire(lambda number, request, reply: change(number, request, reply) if number == 3 else reply)
    found = report(ADD, wire=wire, tests=("assert add(1, 2) == 3",) * 3)
    assert [kind for kind, _, _ in found["results"]] == ["pass", "protocol", "protocol"]
    assert found["ending"][0] == "protocol"
    assert len(wire.requests) == 3


def test_an_answer_too_many_is_found_at_the_goodbye():
    late = []

    def twice(number, request, reply):
        late.append(reply)
        return late[-2] if request["op"] == "bye" else reply

    found = report(ADD, wire=Wire(twice), tests=("assert add(1, 2) == 3",))
    assert found["ending"] == ("protocol", "an answer to something else than was asked")


def test_the_end_of_the_program_fails_this_test_and_the_rest():
    wire = Wire(lambda number, request, reply: ENDED + b"timeout:no end" if number == 3 else reply)
    found = report(ADD, wire=wire, tests=("assert add(1, 2) == 3",) * 3)
    assert [(kind, why) for kind, why, _ in found["results"]] == [
        ("pass", ""),
        ("timeout", "no end"),
        ("timeout", "no end"),
    ]


def test_a_test_that_catches_everything_does_not_pass_when_the_program_has_gone():
    wire = Wire(lambda number, request, reply: ENDED + b"exception:gone" if number == 2 else reply)
    (result,) = report(ADD, wire=wire, tests=("try:\n    add(1, 2)\nexcept:\n    pass",))["results"]
    assert result[:2] == ("exception", "gone")


CHECK = """
import random
METADATA = {}
def check(candidate):
    random.seed(0)
    assert True, "start"
    assert candidate(2) == 4
    base = 3
    assert candidate(base) == 9, "three"
    for n in range(5):
        assert candidate(n) == square_of(n)
"""


def test_statements_of_a_check_function_are_tests_of_their_own():
    prelude = "def square_of(n):\n    return n * n\n\ndef square(n):\n    '''Square.'''\n"
    shape = {"style": "check", "prelude": prelude, "entry_point": "square"}
    assert kinds("def square(n):\n    return n * n\n", CHECK, **shape) == ["pass"] * 4
    assert kinds("def square(n):\n    return 4\n", CHECK, **shape) == ["pass", "pass", "wrong", "wrong"]
    called = [called for _, _, called in report("def square(n):\n    return 4\n", tests=(CHECK,), **shape)["results"]]
    assert called == [False, True, True, True]


def test_a_check_that_breaks_between_its_asserts_fails_the_rest():
    check = "def check(candidate):\n    assert candidate(1) == 1\n    x = candidate(0)\n    assert x == 0\n"
    shape = {"style": "check", "prelude": "def f(n):\n    pass\n", "entry_point": "f"}
    assert kinds("def f(n):\n    return 1 // n\n", check, **shape) == ["pass", "exception"]


PYTEST = """
import pytest
from solution import divide, Counter
import solution

def test_divide():
    assert divide(6, 3) == 2
    assert solution.divide(1, 4) == pytest.approx(0.25 + 1e-9)

def test_by_zero():
    with pytest.raises(ValueError, match="zero"):
        divide(1, 0)

@pytest.mark.parametrize("a, b, expected", [(4, 2, 2), (9, 3, 3)])
def test_many(a, b, expected):
    assert divide(a, b) == expected

class TestCounter:
    def setup_method(self):
        self.counter = Counter()
    def test_adds(self):
        self.counter.add(2)
        assert self.counter.total == 2
    def test_starts_at_zero(self):
        assert self.counter.total == 0
"""
DIVIDE = """
def divide(a, b):
    if b == 0:
        raise ValueError("division by zero")
    return a / b
class Counter:
    def __init__(self):
        self.total = 0
    def add(self, n):
        self.total += n
"""


def test_a_test_module_runs_each_of_its_functions():
    assert kinds(DIVIDE, PYTEST, style="pytest") == ["pass"] * 6
    wrong = DIVIDE.replace("a / b", "2").replace('"division by zero"', '""')
    assert kinds(wrong, PYTEST, style="pytest") == ["wrong", "wrong", "pass", "wrong", "pass", "pass"]


@pytest.mark.parametrize(
    ("tests", "setup", "traceless"),
    [
        (["assert f(1) == [2, {3: 'x'}]", "assert set(f(x) for x in (1, 2)) == {3}"], "", True),
        (["assert math.isclose(f(1), 0.5)", "assert not f('a') and f(-1)[0] <= 2"], "", True),
        (["assert f(1) == 2"], "x = 1", False),
        (["x = f(1)\nassert x == 1"], "", False),
        (["import sys"], "", False),
        (["assert sys.setrecursionlimit(f(1)) is None"], "", False),
        (["assert setattr(f, 'x', 1) is None"], "", False),
        (["assert exec('x = 1') is None"], "", False),
        (["assert (lambda: f(1))() == 1"], "", False),
        (["assert (y := f(1)) == 1"], "", False),
        (["assert math.__dict__.clear() is None"], "", False),
        (["assert f(1).x == 2"], "", False),
        (["assert print(1) is None"], "", False),
    ],
)
def test_only_asserts_on_plain_calls_leave_no_trace(tests, setup, traceless):
    assert Plan(style="asserts", setup=setup, tests=tests, reference=None).leaves_no_trace is traceless
