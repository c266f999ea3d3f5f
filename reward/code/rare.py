"""Values that seldom cross between the candidate's side and the tests': the rest of the protocol's tags.

Loaded in a jail only when such a value comes up.
"""

from __future__ import annotations

import collections
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from reward.code.protocol import Decoder, Encoder, ProtocolError

MAX_DRAINED = 10_000
_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
_TYPES: dict[str, type] = {kind.__name__: kind for kind in _PLAIN}


def write(encoder: Encoder, value: Any, depth: int) -> list[Any] | None:
    """JSON of a value by its exact type; None if it has no tag."""
    kind = type(value)
    if kind in _WRITERS:
        return _WRITERS[kind](encoder, value, depth)
    if encoder.types and isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return ["T", value.__name__]
    library = _library_writer(kind)
    return None if library is None else library(value)


def _write_many(tag: str) -> Callable[[Encoder, Any, int], list[Any]]:
    return lambda encoder, value, depth: [tag, *encoder.items(value, depth)]


def _write_pairs(tag: str) -> Callable[[Encoder, Any, int], list[Any]]:
    return lambda encoder, value, depth: [tag, *encoder.items(itertools.chain.from_iterable(value.items()), depth)]


def _write_iterator(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    taken = list(itertools.islice(value, MAX_DRAINED + 1))
    return ["g", len(taken) > MAX_DRAINED, *encoder.items(taken[:MAX_DRAINED], depth)]


def _write_deque(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    return ["q", value.maxlen, *encoder.items(value, depth)]


def _empty_iterators() -> Iterator[Any]:
    nothing: list[Any] = []
    yield from (iter(nothing), iter(()), iter(""), iter(b""), iter(set()), iter(range(0)), iter(range(2**70)))
    yield from (iter({}), iter({}.values()), iter({}.items()), reversed(nothing), reversed({}), enumerate(nothing))
    yield from (zip(nothing), map(len, nothing), filter(None, nothing), (item for item in nothing))
    yield from (itertools.chain(), itertools.islice(nothing, 0), itertools.count(), itertools.cycle(nothing))
    yield from (itertools.repeat(0), itertools.accumulate(nothing), itertools.product())
    yield from (itertools.permutations(nothing), itertools.combinations(nothing, 0), itertools.pairwise(nothing))
    yield from (itertools.combinations_with_replacement(nothing, 0), itertools.zip_longest(nothing))
    yield from (itertools.takewhile(len, nothing), itertools.dropwhile(len, nothing), itertools.starmap(len, nothing))
    yield from (itertools.compress(nothing, nothing), itertools.filterfalse(None, nothing))
    yield from (itertools.groupby(nothing),)


_ordered = collections.OrderedDict[Any, Any]()
_VIEWS: dict[str, tuple[Any, Any]] = {
    "k": ({}.keys(), _ordered.keys()),
    "v": ({}.values(), _ordered.values()),
    "m": ({}.items(), _ordered.items()),
}
_WRITERS: dict[type, Callable[[Encoder, Any, int], list[Any]]] = {
    **{type(iterator): _write_iterator for iterator in _empty_iterators()},
    **{type(view): _write_many(tag) for tag, views in _VIEWS.items() for view in views},
    collections.Counter: _write_pairs("C"),
    collections.OrderedDict: _write_pairs("O"),
    collections.defaultdict: _write_pairs("D"),
    collections.deque: _write_deque,
    bytes: lambda encoder, value, depth: ["b", value.decode("latin-1")],
    bytearray: lambda encoder, value, depth: ["B", value.decode("latin-1")],
    complex: lambda encoder, value, depth: ["c", *encoder.items((value.real, value.imag), depth)],
    range: lambda encoder, value, depth: ["r", *encoder.items((value.start, value.stop, value.step), depth)],
}

_LIBRARY: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {
    "Fraction": ("fractions", lambda value: ["Fraction", hex(value.numerator), hex(value.denominator)]),
    "Decimal": ("decimal", lambda value: ["Decimal", str(value)]),
    "date": ("datetime", lambda value: ["date", value.isoformat()]),
    "time": ("datetime", lambda value: ["time", value.isoformat()]),
    "datetime": ("datetime", lambda value: ["datetime", value.isoformat()]),
    "timedelta": ("datetime", lambda value: ["timedelta", value.days, value.seconds, value.microseconds]),
}
"""Value types of the standard library, by tag: the module, and how to write one."""


def _library_writer(kind: type) -> Callable[[Any], list[Any]] | None:
    """Writer of a library type, only if it is that very type; the module is not imported for this."""
    if kind.__name__ not in _LIBRARY:
        return None
    module, write = _LIBRARY[kind.__name__]
    return write if getattr(sys.modules.get(module), kind.__name__, None) is kind else None


def _read_handle(decoder: Decoder, data: list[Any], depth: int) -> Any:
    """What stands for an object of the other side."""
    (number,) = data
    if type(number) is not int:
        raise ProtocolError("a handle that is no number")
    return decoder.object_of(number)


def _read_plain_type(decoder: Decoder, data: list[Any], depth: int) -> type:
    (name,) = data
    if not decoder.types or name not in _TYPES:
        raise ProtocolError("a type")
    return _TYPES[name]


def _read_int(decoder: Decoder, data: list[Any], depth: int) -> int:
    (text,) = data
    return int(text, 16)


def _read_float(decoder: Decoder, data: list[Any], depth: int) -> float:
    (text,) = data
    if text not in ("nan", "inf", "-inf"):
        raise ProtocolError("a tagged float that is finite")
    return float(text)


def _read_iterator(decoder: Decoder, data: list[Any], depth: int) -> Iterator[Any]:
    more, *items = data
    return _drained(decoder.items(items, depth), more=bool(more))


def _drained(items: list[Any], *, more: bool) -> Iterator[Any]:
    yield from items
    if more:
        raise ProtocolError(f"an iterator of more than {MAX_DRAINED} items")


def _read_deque(decoder: Decoder, data: list[Any], depth: int) -> Any:
    maxlen, *items = data
    return collections.deque(decoder.items(items, depth), maxlen)


def _read_range(decoder: Decoder, data: list[Any], depth: int) -> range:
    start, stop, step = decoder.items(data, depth)
    return range(start, stop, step)


def _read_complex(decoder: Decoder, data: list[Any], depth: int) -> complex:
    real, imaginary = decoder.items(data, depth)
    return complex(real, imaginary)


def _read_fraction(decoder: Decoder, data: list[Any], depth: int) -> Any:
    from fractions import Fraction

    numerator, denominator = data
    return Fraction(int(numerator, 16), int(denominator, 16))


def _read_decimal(decoder: Decoder, data: list[Any], depth: int) -> Any:
    from decimal import Decimal

    (text,) = data
    return Decimal(text)


def _read_moment(decoder: Decoder, data: list[Any], depth: int, *, kind: str) -> Any:
    import datetime

    (text,) = data
    return getattr(datetime, kind).fromisoformat(text)


def _read_timedelta(decoder: Decoder, data: list[Any], depth: int) -> Any:
    from datetime import timedelta

    days, seconds, microseconds = data
    return timedelta(days, seconds, microseconds)


READERS: dict[str, Callable[[Decoder, list[Any], int], Any]] = {
    "i": _read_int,
    "f": _read_float,
    "C": lambda decoder, data, depth: collections.Counter(decoder.pairs(data, depth)),
    "O": lambda decoder, data, depth: collections.OrderedDict(decoder.pairs(data, depth)),
    "D": lambda decoder, data, depth: collections.defaultdict(None, decoder.pairs(data, depth)),
    "k": lambda decoder, data, depth: dict.fromkeys(decoder.items(data, depth)).keys(),
    "v": lambda decoder, data, depth: dict(enumerate(decoder.items(data, depth))).values(),
    "m": lambda decoder, data, depth: dict(decoder.items(data, depth)).items(),
    "q": _read_deque,
    "b": lambda decoder, data, depth: data[0].encode("latin-1"),
    "B": lambda decoder, data, depth: bytearray(data[0].encode("latin-1")),
    "c": _read_complex,
    "r": _read_range,
    "g": _read_iterator,
    "h": _read_handle,
    "T": _read_plain_type,
    "Fraction": _read_fraction,
    "Decimal": _read_decimal,
    "date": lambda decoder, data, depth: _read_moment(decoder, data, depth, kind="date"),
    "time": lambda decoder, data, depth: _read_moment(decoder, data, depth, kind="time"),
    "datetime": lambda decoder, data, depth: _read_moment(decoder, data, depth, kind="datetime"),
    "timedelta": _read_timedelta,
}
