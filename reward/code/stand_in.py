"""What the tests hold in place of the candidate's functions, classes and objects.

Runs in the tests' jail (T). A call of a stand-in asks the candidate's side (U) and returns plain data or raises what U
says was raised. An object that is no plain data comes back as a handle, which is true, hashes and compares by identity,
and has no length, items or order: a test that compares it with an expected value fails.

Only an object made by calling a class *of the tests* (`Stack()`) has methods, `len`, `str` and items. A handle that a
function returned has data attributes and can be called, but has no methods: `f(x).equals(expected)` would hand the
expected value to the candidate.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable, Iterator
from typing import Any

from reward.code.protocol import Decoder, Encoder, ProtocolError, dumps, loads, request_name

ANSWER, ENDED = b"A", b"X"
"""First byte of what comes back: U's answer, or the word for U's end."""
_OWN_KINDS = {"MemoryError": "memory", "ProtocolError": "protocol", "PermissionError": "permission"}
_EXCEPTIONS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not name.startswith("Stop")
}
"""By name. Without StopIteration: raised in `all(map(f, cases))` it would end the cases, and the test would pass."""


class CandidateError(Exception):
    """An exception of the candidate's that has no counterpart here."""


class CandidateGone(BaseException):
    """U is over, or has broken the protocol: no call can succeed any more. Tests that catch `Exception` miss it."""


class BadTests(BaseException):
    """The tests ask for something that cannot be done; the row is at fault, whatever the program."""


class Link:
    """The way to U for one program."""

    def __init__(self, exchange: Callable[[bytes], bytes], secret: str) -> None:
        self._exchange = exchange
        self._secret = secret
        self._objects: dict[int, Any] = {}
        self.num_calls = 0
        self.gone: tuple[str, str] | None = None
        """Verdict and reason, once U is over."""
        self.raised: BaseException | None = None
        """The exception that was raised last in U's name."""
        self.raised_kind = "exception"

    def ask(self, op: str, *, callable_result: bool = True, **fields: Any) -> Any:
        """The answer of U as a value; raises what U raised, CandidateGone if there is no (valid) answer."""
        if self.gone is not None:
            raise CandidateGone
        self.num_calls += 1
        name = request_name(self._secret, self.num_calls)
        reply = self._exchange(dumps({"id": name, "op": op, **fields}))
        if reply[:1] == ENDED:
            kind, _, why = reply[1:].decode(errors="replace").partition(":")
            raise self._over(kind, why)
        try:
            answer = loads(reply[1:])
            if answer.get("id") != name or len(answer) != 2 or not ("value" in answer) ^ ("error" in answer):
                raise ProtocolError("an answer to something else than was asked")
            if "error" not in answer:
                return Decoder(lambda number: self._object(number, callable_result)).decode(answer["value"])
            error = _read_error(answer["error"])
        except (ProtocolError, MemoryError, RecursionError, LookupError) as problem:
            raise self._over("protocol", str(problem)) from None
        self.raised, self.raised_kind = error, _OWN_KINDS.get(answer["error"][0], "exception")
        raise error

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Encoded arguments of a call."""
        encoder = Encoder(_number_of, types=True)
        try:
            named = {name: encoder.encode(value) for name, value in (kwargs or {}).items()}
            return {"args": encoder.items(list(args), 0), "kwargs": named}
        except ProtocolError as problem:
            raise self._over("protocol", f"arguments of a call: {problem}") from None

    def instance(self, value: Any) -> Any:
        """What a class of the tests has made: plain data as it is, a handle with methods from now on."""
        if type(value) is not Handle:
            return value
        number = _number_of(value)
        self._objects[number] = Instance(self, number, can_call=True)
        return self._objects[number]

    def _object(self, number: int, can_call: bool) -> Any:
        if number not in self._objects:
            self._objects[number] = Handle(self, number, can_call=can_call)
        return self._objects[number]

    def _over(self, kind: str, why: str) -> CandidateGone:
        self.gone = (kind, why)
        return CandidateGone(why)


def _read_error(data: Any) -> Exception:
    if type(data) is not list or len(data) != 2 or not all(type(text) is str for text in data):
        raise ProtocolError("an error that is no pair of texts")
    name, text = data
    try:
        return _EXCEPTIONS[name](text)
    except (KeyError, TypeError):
        return CandidateError(f"{name}: {text}")


class Handle:
    """An object of the candidate's."""

    __slots__ = ("_can_call", "_link", "_number")

    def __init__(self, link: Link, number: int, *, can_call: bool) -> None:
        for name, value in (("_link", link), ("_number", number), ("_can_call", can_call)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Data attribute; what is no plain data cannot be called."""
        return _get(self, name, callable_result=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object, if a function returned it or it is a method of an instance."""
        if not self._can_call:
            raise TypeError("a method of an object that a function returned is not called: arguments may be answers")
        return self._link.ask("apply", handle=self._number, **self._link.arguments(args, kwargs))


class Instance(Handle):
    """An object that the tests made by calling a class."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        """Attribute or method."""
        return _get(self, name, callable_result=True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the attribute of the candidate's object."""
        self._link.ask("set", handle=self._number, name=name, **self._link.arguments((value,)))

    def __len__(self) -> int:
        """The candidate's `len`."""
        return int(_exactly(int, _special(self, "len")))

    def __str__(self) -> str:
        """The candidate's `str`."""
        return str(_exactly(str, _special(self, "str")))

    def __repr__(self) -> str:
        """The candidate's `repr`."""
        return str(_exactly(str, _special(self, "repr")))

    def __getitem__(self, key: Any) -> Any:
        """The candidate's item."""
        return _special(self, "item", key)

    def __contains__(self, key: Any) -> bool:
        """The candidate's `in`."""
        return bool(_exactly(bool, _special(self, "contains", key)))

    def __iter__(self) -> Iterator[Any]:
        """The candidate's items, as `list` gives them."""
        return iter(_exactly(list, _special(self, "list")))

    def __bool__(self) -> bool:
        """Always true, so that a condition in a test does not run the candidate's code."""
        return True


def _get(handle: Handle, name: str, *, callable_result: bool) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return handle._link.ask("get", handle=handle._number, name=name, callable_result=callable_result)


def _special(handle: Handle, name: str, *args: Any) -> Any:
    encoded = handle._link.arguments(args)["args"]
    return handle._link.ask("special", handle=handle._number, name=name, args=encoded)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _number_of(value: Any) -> int:
    if isinstance(value, Handle):
        return int(value._number)
    what = value.__name__ if isinstance(value, Function) else f"a {type(value).__name__}"
    raise BadTests(f"a test passes {what} to the program, which cannot cross")


class Function:
    """A function of the candidate's, by its name."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the call."""
        return self._link.ask("call", name=self.__name__, **self._link.arguments(args, kwargs))


class Class(Function):
    """A class of the candidate's, by its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A new object."""
        return self._link.instance(super().__call__(*args, **kwargs))


class Module(types.ModuleType):
    """The module that the tests import the program from."""

    def __init__(self, name: str, named: Callable[[str], Function]) -> None:
        super().__init__(name)
        self.__dict__["_named"] = named

    def __getattr__(self, name: str) -> Any:
        """A function or class of the program."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_named"](name)
