"""What the candidate's side (U) and the tests' side (T) may say to each other: plain data as tagged JSON, in frames.

This file runs in both jails and is loaded there for every program, so it is small; `rare` has what seldom crosses.
U is not trusted: T believes nothing that `loads` and `Decoder` do not check.

A value is null, true, false, a number or a text as such; anything else is a list that starts with a tag:
`["l", 1, 2]` is `[1, 2]`, `["d", "a", 1]` is `{"a": 1}`. Only exact built-in types have a tag. An instance of a
subclass, or of a class of the candidate's, travels as a handle `["h", 7]`: a number under which U keeps the object.
Iterators are drained up to a bound. There is no pickle, no marshal and no `eval` on the way.

Limits: `MAX_DEPTH` levels, `MAX_NODES` values, and the length of a frame.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from itertools import chain
from typing import Any

MAX_DEPTH = 50
MAX_NODES = 200_000
_SMALL_INT = 2**63


class ProtocolError(ValueError):
    """A value that must not cross, or bytes that are no message."""


class EndOfFrames(Exception):  # noqa: N818 - the other side is gone, which is not always an error
    """The pipe was closed."""


def read_frame(descriptor: int) -> bytes:
    """One frame: four bytes of length, big endian, then the payload."""
    return _read_exactly(descriptor, int.from_bytes(_read_exactly(descriptor, 4), "big"))


def write_frame(descriptor: int, payload: bytes) -> None:
    """One frame, whole."""
    view = memoryview(len(payload).to_bytes(4, "big") + payload)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EndOfFrames
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def request_name(secret: str, number: int) -> str:
    """Name of a request; an answer counts only under the name of the request that waits.

    Who does not know the secret, which is drawn for each program, cannot foretell the next name from those before. The
    same secret gives the same names, so that a conversation can be repeated.
    """
    return hashlib.blake2b(f"{secret}/{number}".encode(), digest_size=8).hexdigest()


def dumps(message: dict[str, Any]) -> bytes:
    """A message of plain JSON values (encoded ones among them) as bytes."""
    return json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def loads(payload: bytes) -> dict[str, Any]:
    """The JSON object in a frame; ProtocolError for anything else."""
    try:
        message = json.loads(payload.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a message: {type(error).__name__}") from None
    if type(message) is not dict:
        raise ProtocolError(f"a JSON {type(message).__name__}, not an object")
    return message


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


class Encoder:
    """Values to JSON; `handle_of` gives the number of an object that has no tag, or raises.

    With `types`, which only the tests' side sets, a plain built-in type such as `int` may cross as an argument.
    """

    def __init__(self, handle_of: Callable[[Any], int], *, types: bool = False) -> None:
        self._handle_of = handle_of
        self.types = types
        self._num_nodes = 0

    def encode(self, value: Any, depth: int = 0) -> Any:
        """JSON of one value."""
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            raise ProtocolError(f"a value deeper than {MAX_DEPTH} levels or of more than {MAX_NODES} parts")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_SMALL_INT < value < _SMALL_INT else ["i", hex(value)]
        if kind is float:
            return value if math.isfinite(value) else ["f", repr(value)]
        if kind in _TAGS:
            return [_TAGS[kind], *self.items(value, depth + 1)]
        if kind is dict:
            return ["d", *self.items(chain.from_iterable(value.items()), depth + 1)]
        from reward.code.rare import write

        data = write(self, value, depth + 1)
        return ["h", self._handle_of(value)] if data is None else data

    def items(self, values: Any, depth: int) -> list[Any]:
        """JSON of each of several values."""
        return [self.encode(value, depth) for value in values]


_TAGS: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}


class Decoder:
    """JSON to values; `object_of` gives what stands for a handle; `types` as in `Encoder`."""

    def __init__(self, object_of: Callable[[int], Any], *, types: bool = False) -> None:
        self.object_of = object_of
        self.types = types
        self._num_nodes = 0

    def decode(self, data: Any, depth: int = 0) -> Any:
        """One value; ProtocolError if `data` is no encoded value."""
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            raise ProtocolError(f"a value deeper than {MAX_DEPTH} levels or of more than {MAX_NODES} parts")
        if data is None or type(data) in (bool, int, float, str):
            return data
        if type(data) is not list or not data or type(data[0]) is not str:
            raise ProtocolError("neither a plain value nor a list with a tag")
        try:
            return self._tagged(data[0], data[1:], depth + 1)
        except ProtocolError:
            raise
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ProtocolError(f"no value has this form: tag {data[0][:20]!r}, {type(error).__name__}") from None

    def items(self, data: list[Any], depth: int) -> list[Any]:
        """Several values."""
        return [self.decode(item, depth) for item in data]

    def pairs(self, data: list[Any], depth: int) -> dict[Any, Any]:
        """A dictionary from keys and values that stand one after the other."""
        if len(data) % 2:
            raise ProtocolError("a key without a value")
        values = self.items(data, depth)
        return dict(zip(values[::2], values[1::2], strict=True))

    def _tagged(self, tag: str, data: list[Any], depth: int) -> Any:
        if tag in _KINDS:
            return _KINDS[tag](self.items(data, depth))
        if tag == "d":
            return self.pairs(data, depth)
        from reward.code.rare import READERS

        if tag not in READERS:
            raise ProtocolError(f"tag {tag[:20]!r} is unknown")
        return READERS[tag](self, data, depth)


_KINDS: dict[str, Callable[[list[Any]], Any]] = {tag: kind for kind, tag in _TAGS.items()}
