"""The tests' side (T): runs the tests of one item after the other against stand-ins for the candidate.

It holds the expected values, so the candidate never runs here; what it runs is the test code of a data set, which is
third-party too and therefore runs in a jail of its own, with limits and without a network.

In: an item as JSON, `{"secret", "program", "style", "prelude", "setup", "tests", "reference", "entry_point"}`. Out:
frames `C` + request for U, each answered by `A` + answer or `X` + verdict:why (U is over), and at the end `V` and a
report:

    {"results": [[verdict, why, called], ..], "ending": [verdict, why] | null, "fault": why | null, "leaves_no_trace"}

One result a test; `called`: the test asked the program for something. `ending`: how U broke off after its last answer.
`fault`: the row is not usable, whatever the program.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

from reward.code.plan import CASES, HOOKS, Plan
from reward.code.protocol import EndOfFrames, read_frame, write_frame
from reward.code.stand_in import BadTests, CandidateGone, Class, Function, Link, Module

CALL, REPORT = b"C", b"V"
_MAX_WHY_CHARS = 200
_SOLUTION_MODULES = ("solution", "candidate")

Result = tuple[str, str, bool]


@functools.lru_cache(maxsize=16)
def _plan(style: str, setup: str, tests: tuple[str, ...], reference: str | None) -> Plan:
    """The same tests are often run for several programs in a row."""
    return Plan(style=style, setup=setup, tests=list(tests), reference=reference)


class Run:
    """The tests of one item against one program."""

    def __init__(self, item: dict[str, Any], exchange: Callable[[bytes], bytes]) -> None:
        self._item = item
        self._link = Link(exchange, item["secret"])
        self._plan = _plan(item["style"], item["setup"], tuple(item["tests"]), item["reference"])
        self._results: list[Result] = []
        self._num_tests = self._plan.num_tests
        self._num_calls = 0
        self._is_strained = False
        self._namespace: dict[str, Any] = {"__name__": "tests"}

    def report(self) -> dict[str, Any]:
        """Run the tests; BadTests if the row is not usable."""
        self._prepare()
        ending = None
        try:
            self._link.ask("load", program=self._item["program"])
            self._num_calls = self._link.num_calls
            {"asserts": self._asserts, "check": self._check, "pytest": self._pytest}[self._plan.style]()
            self._link.ask("bye")
        except (CandidateGone, Exception) as error:  # noqa: BLE001 - whatever a test raises is its outcome
            ending = self._ending(error)
        if ending is not None:
            self._results += [(*ending, False)] * (self._num_tests - len(self._results))
        traceless = self._plan.leaves_no_trace and not self._is_strained
        return {"results": self._results, "ending": ending, "leaves_no_trace": traceless}

    def _prepare(self) -> None:
        """Names that the tests use: the reference's imports, the prelude's helpers, modules, stand-ins."""
        for statement in self._plan.imports:
            try:
                exec(statement, self._namespace)
            except ImportError:
                continue
        exec(compile(self._item["prelude"], "prelude", "exec", optimize=0), self._namespace)
        for name in self._plan.modules:
            self._namespace.setdefault(name, importlib.import_module(name))
        entry_point = self._item["entry_point"]
        for name in (*self._plan.stand_ins, *([entry_point] if entry_point else [])):
            if name not in self._namespace or name == entry_point or name in self._plan.defined:
                self._namespace[name] = self._stand_in(name)

    def _stand_in(self, name: str) -> Function:
        return (Class if self._plan.is_class(name) else Function)(self._link, name)

    def _ending(self, error: BaseException) -> tuple[str, str]:
        """Why the tests could not be run to their end; BadTests if the program had no part in it."""
        if isinstance(error, CandidateGone):
            assert self._link.gone is not None
            return self._link.gone
        if error is not self._link.raised and self._link.num_calls <= 1:
            raise BadTests(_describe(error))
        return self._failure(error)

    def _failure(self, error: BaseException) -> tuple[str, str]:
        """Verdict and reason of a test that raised."""
        if isinstance(error, CandidateGone):
            return self._link.gone or ("protocol", "")
        return self._link.raised_kind if error is self._link.raised else "wrong", _describe(error)

    def _begin(self) -> None:
        self._num_calls = self._link.num_calls

    def _passed(self) -> None:
        """A test that caught the end of the program with a bare `except` has not passed."""
        kind, why = self._link.gone or ("pass", "")
        self._results.append((kind, why, self._link.num_calls > self._num_calls))

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, BadTests | SystemExit | KeyboardInterrupt | GeneratorExit):
            raise BadTests(_describe(error)) from None
        self._is_strained |= isinstance(error, MemoryError | RecursionError) and error is not self._link.raised
        self._results.append((*self._failure(error), self._link.num_calls > self._num_calls))

    def _test(self, run: Callable[[], object]) -> None:
        self._begin()
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - whatever a test raises is its outcome
            self._failed(error)
        else:
            self._passed()

    def _asserts(self) -> None:
        exec(self._plan.setup, self._namespace)
        for code in self._plan.tests:
            self._test(lambda code=code: exec(code, self._namespace))  # type: ignore[misc]

    def _check(self) -> None:
        """HumanEval: the module defines `check`, whose tests report to the hooks that the plan put in."""
        self._namespace |= dict(zip(HOOKS, (self._begin, self._passed, self._failed), strict=True))
        for code in self._plan.tests:
            exec(code, self._namespace)
        self._namespace["check"](self._namespace[self._item["entry_point"]])

    def _pytest(self) -> None:
        """A test module: every `test_*` function, also in classes `Test*`, once for each set of its parameters."""
        from reward.code.pytest_like import module

        sys.modules["pytest"] = module()
        for name in _SOLUTION_MODULES:
            sys.modules[name] = Module(name, self._stand_in)
        exec(self._plan.setup, self._namespace)
        for code in self._plan.tests:
            exec(code, self._namespace)
        calls = [call for name, value in list(self._namespace.items()) for call in _test_calls(name, value)]
        self._num_tests = len(calls)
        for call in calls:
            self._test(call)


def _test_calls(name: str, value: Any) -> list[Callable[[], object]]:
    if name.startswith("test_") and inspect.isfunction(value):
        return [functools.partial(_checked(value, case), **case) for case in getattr(value, CASES, [{}])]
    if name.startswith("Test") and inspect.isclass(value):
        made = value()
        return [
            call for key in vars(value) if key.startswith("test_") for call in _method_calls(made, getattr(made, key))
        ]
    return []


def _method_calls(made: Any, method: Any) -> list[Callable[[], object]]:
    cases = getattr(method, CASES, [{}])
    prepare = getattr(made, "setup_method", lambda: None)
    return [functools.partial(_prepared, prepare, functools.partial(_checked(method, case), **case)) for case in cases]


def _prepared(prepare: Callable[[], object], test: Callable[[], object]) -> None:
    prepare()
    test()


def _checked(function: Any, case: dict[str, Any]) -> Any:
    """The function, if nothing but the case's arguments is to be given to it; BadTests for fixtures."""
    wanted = [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]
    missing = [name for name in wanted if name not in case]
    if missing:
        raise BadTests(f"test {function.__name__} wants the fixture {missing[0]!r}; fixtures are not supported")
    return function


def run_item(item: dict[str, Any], exchange: Callable[[bytes], bytes]) -> dict[str, Any]:
    """Report on one item; whatever goes wrong in the row itself is a `fault`."""
    try:
        return {"fault": None, **Run(item, exchange).report()}
    except (Exception, BadTests, SystemExit, CandidateGone) as error:  # noqa: BLE001 - the row's fault, reported
        return {"fault": _describe(error), "results": [], "ending": None, "leaves_no_trace": False}


def _describe(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception class of the tests
        text = ""
    return f"{type(error).__name__}: {text}"[:_MAX_WHY_CHARS]


def serve(channel_in: int, channel_out: int) -> None:
    """Run items until the grader hangs up."""

    def exchange(request: bytes) -> bytes:
        write_frame(channel_out, CALL + request)
        return read_frame(channel_in)

    while True:
        try:
            item = json.loads(read_frame(channel_in))
        except EndOfFrames:
            return
        write_frame(channel_out, REPORT + json.dumps(run_item(item, exchange)).encode())
