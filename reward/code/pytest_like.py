"""The little of pytest that published test modules use: `raises`, `approx`, `mark.parametrize`.

Stands in the tests' jail under the name `pytest`, where the real one is neither installed nor wanted.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable
from typing import Any

from reward.code.plan import CASES


class Raises:
    """`with raises(ValueError, match="..") as caught:`; fails if nothing, or something else, is raised."""

    def __init__(self, expected: Any, match: str | None = None) -> None:
        self._expected = expected
        self._match = match
        self.value: BaseException | None = None
        self.type: type[BaseException] | None = None

    def __enter__(self) -> Raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            raise AssertionError(f"did not raise {self._expected}")
        if not isinstance(error, self._expected):
            return False
        self.value, self.type = error, kind
        if self._match is not None and not re.search(self._match, str(error)):
            raise AssertionError(f"{str(error)!r} does not match {self._match!r}")
        return True


class Approx:
    """Equal to a number, or to each number of a list, tuple or dict, within `rel` of it or `abs`."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False) -> None:
        self._expected = expected
        self._rel = 1e-6 if rel is None else rel
        self._abs = 1e-12 if abs is None else abs
        self._nan_ok = nan_ok

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, actual: object) -> bool:
        return self._close(actual, self._expected)

    def _close(self, actual: Any, expected: Any) -> bool:
        if isinstance(expected, dict):
            if not isinstance(actual, dict) or actual.keys() != expected.keys():
                return False
            return all(self._close(actual[key], value) for key, value in expected.items())
        if isinstance(expected, list | tuple):
            if type(actual) is not type(expected) or len(actual) != len(expected):
                return False
            return all(self._close(a, b) for a, b in zip(actual, expected, strict=True))
        if not isinstance(actual, int | float | complex) or isinstance(actual, bool) != isinstance(expected, bool):
            return bool(actual == expected)
        if actual != actual or expected != expected:
            return self._nan_ok and actual != actual and expected != expected
        tolerance = max(self._rel * abs(expected), self._abs)
        return bool(actual == expected or abs(actual - expected) <= tolerance < math.inf)


class _Mark:
    """`mark.parametrize` keeps the cases; any other mark does nothing."""

    def parametrize(self, names: Any, values: Any, **_: Any) -> Callable[[Any], Any]:
        """Cases of a test function; two decorators give all combinations."""
        split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        added = [_case(split, value) for value in values]

        def keep(function: Any) -> Any:
            earlier = getattr(function, CASES, [{}])
            setattr(function, CASES, [{**old, **new} for new in added for old in earlier])
            return function

        return keep

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: args[0] if len(args) == 1 and callable(args[0]) else lambda function: function


def _case(names: list[str], value: Any) -> dict[str, Any]:
    values = value.values if isinstance(value, Param) else (value,) if len(names) == 1 else tuple(value)
    return dict(zip(names, values, strict=True))


class Param:
    """`param(1, 2, id="..")`: one case."""

    def __init__(self, *values: Any, **_: Any) -> None:
        self.values = values


def fail(reason: str = "", **_: Any) -> None:
    """Fail the test."""
    raise AssertionError(reason)


def module() -> types.ModuleType:
    """The module `pytest`."""
    made = types.ModuleType("pytest")
    made.__dict__.update(raises=Raises, approx=Approx, mark=_Mark(), param=Param, fail=fail)
    return made
