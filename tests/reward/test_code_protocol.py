"""Plain data on the wire: what crosses, what must not, and bytes from the other side that are no message."""

import collections
import datetime
import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.code.protocol import (
    MAX_DEPTH,
    MAX_NODES,
    Decoder,
    Encoder,
    ProtocolError,
    dumps,
    loads,
    request_name,
)
from reward.code.rare import MAX_DRAINED

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.booleans(), inner, max_size=4)
        | st.sets(st.integers() | st.text(), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
    ),
    max_leaves=20,
)


def refuse(value):
    raise ProtocolError(f"no handle for {value!r}")


def across(value):
    """The value as the other side gets it."""
    message = loads(dumps({"value": Encoder(refuse).encode(value)}))
    return Decoder(refuse).decode(message["value"])


def read(text):
    return Decoder(refuse).decode(loads(b'{"v":' + text.encode() + b"}")["v"])


@given(PLAIN)
def test_plain_data_crosses_unchanged_and_with_its_types(value):
    returned = across(value)
    assert repr(returned) == repr(value) or returned == value
    assert type(returned) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(10**4000),
        -0.0,
        math.inf,
        "\ud800 lone surrogate \0",
        range(3, 10**30, 2),
        collections.Counter("hello"),
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.defaultdict(int, {"a": 1}),
        collections.deque([1, 2], maxlen=2),
        bytearray(b"\x00\xff"),
        Fraction(1, 3),
        Decimal("1.10"),
        datetime.date(2026, 2, 28),
        datetime.datetime(2026, 2, 28, 1, 2, 3, tzinfo=datetime.UTC),
        datetime.time(1, 2, 3),
        datetime.timedelta(days=-1, microseconds=5),
        {(1, (2, frozenset({3}))): [True, 1, 1.0]},
    ],
)
def test_other_built_in_and_library_values_cross(value):
    returned = across(value)
    assert returned == value
    assert type(returned) is type(value)
    assert repr(returned) == repr(value) or isinstance(value, collections.defaultdict)


def test_a_number_of_any_length_crosses():
    assert across(-(10**50_000)) == -(10**50_000)


def test_not_a_number_crosses():
    assert math.isnan(across(float("nan")))


def test_true_and_one_stay_apart():
    assert [type(value) for value in across([True, 1, 1.0])] == [bool, int, float]


def test_views_keep_their_equality():
    assert across({1: 2}.keys()) == {1}
    assert list(across({1: 2, 3: 2}.values())) == [2, 2]
    assert across({1: 2}.items()) == {(1, 2)}


@pytest.mark.parametrize(
    "make",
    [lambda: (x for x in (1, 2)), lambda: map(int, "12"), lambda: iter([1, 2]), lambda: zip("a", "b", strict=True)],
)
def test_iterators_come_out_as_iterators_and_equal_no_list(make):
    returned = across(make())
    assert returned != list(make())
    assert list(returned) == list(make())


def test_iterator_beyond_the_bound_breaks_where_it_was_cut():
    returned = across(iter(range(2**70)))
    assert [next(returned) for _ in range(MAX_DRAINED)] == list(range(MAX_DRAINED))
    with pytest.raises(ProtocolError, match=f"more than {MAX_DRAINED} items"):
        next(returned)


@pytest.mark.parametrize(
    "value",
    [
        type("I", (int,), {})(3),
        type("S", (str,), {})("x"),
        type("L", (list,), {})(),
        type("B", (bytes,), {})(),
        type("D", (dict,), {})(),
        type("F", (Fraction,), {})(1, 2),
        type("Fraction", (), {})(),
        collections.namedtuple("P", "x")(1),
        object(),
        len,
        int,
        math,
        (i for i in ()).__class__,
    ],
)
def test_anything_else_than_an_exact_type_asks_for_a_handle(value):
    seen = []
    assert Encoder(lambda item: seen.append(item) or 7).encode([value]) == ["l", ["h", 7]]
    assert seen[0] is value


def test_plain_types_cross_as_arguments_only():
    encoded = Encoder(refuse, types=True).encode([int, str])
    assert Decoder(refuse, types=True).decode(encoded) == [int, str]
    with pytest.raises(ProtocolError):
        Decoder(refuse).decode(encoded)
    with pytest.raises(ProtocolError):
        Encoder(refuse, types=True).encode(type)
    with pytest.raises(ProtocolError):
        Decoder(refuse, types=True).decode(["T", "type"])


def test_depth_is_bounded_both_ways():
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ProtocolError, match="levels"):
        Encoder(refuse).encode(deep)
    with pytest.raises(ProtocolError, match="levels"):
        read('["l",' * (MAX_DEPTH + 2) + "1" + "]" * (MAX_DEPTH + 2))


def test_a_list_that_holds_itself_is_refused():
    ring = []
    ring.append(ring)
    with pytest.raises(ProtocolError):
        Encoder(refuse).encode(ring)


def test_shared_parts_cannot_multiply_without_end():
    value = [0]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(ProtocolError, match=f"{MAX_NODES} parts"):
        Encoder(refuse).encode(value)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"[" * 200_000,
        b'{"a":' + b"9" * 10_000 + b"}",
        "{}é".encode(),
    ],
)
def test_bytes_that_are_no_message_are_refused(payload):
    with pytest.raises(ProtocolError):
        loads(payload)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "[1]",
        '["nope"]',
        '["i"]',
        '["i", 5]',
        '["i", "xyz"]',
        '["i", "0x1", "0x2"]',
        '["f", "1.5"]',
        '["f", "nan", 1]',
        '["d", 1]',
        '["d", ["l"], 1]',
        '["s", ["l"]]',
        '["C", ["s"], 1]',
        '["m", 1]',
        '["b", 5]',
        '["b", "\\u1234"]',
        '["c", 1]',
        '["c", "a", "b"]',
        '["r", 1, 2, 0]',
        '["r", 1.5, 2, 1]',
        '["q", "x", 1]',
        '["q", -1]',
        '["g"]',
        '["h", "1"]',
        '["h", true]',
        '["h"]',
        '["Fraction", "0x1", "0x0"]',
        '["Decimal", "x"]',
        '["date", "x"]',
        '["timedelta", 1e300, 0, 0]',
        '["T", "int"]',
        '["l", {"a": 1}]',
    ],
)
def test_data_that_encodes_no_value_is_refused(text):
    with pytest.raises(ProtocolError):
        read(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda x: st.lists(x),
    )
)
def test_any_json_decodes_to_plain_data_or_is_refused(data):
    try:
        value = Decoder(lambda number: ("handle", number)).decode(data)
    except ProtocolError:
        return
    assert type(value).__module__ in ("builtins", "collections", "decimal", "fractions", "datetime")


def test_lists_that_look_like_tags_stay_lists():
    assert across(["i", "0x6"]) == ["i", "0x6"]
    assert across(["h", 1]) == ["h", 1]


def test_names_of_requests_depend_on_the_secret_and_the_number():
    names = {request_name(secret, number) for secret in ("a", "b") for number in range(100)}
    assert len(names) == 200
    assert request_name("a", 1) == request_name("a", 1)


def test_message_is_ascii():
    assert json.loads(dumps({"v": "é\ud800"}).decode("ascii")) == {"v": "é\ud800"}
