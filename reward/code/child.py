"""The candidate's side (U): runs the program, then calls what the tests ask for and answers with plain data.

Whatever runs here may be changed by the program, so nothing here decides anything: no test, no expected value and no
verdict ever enters this process. A request names what to do, an answer repeats its id:

    {"id", "op": "load", "program"}                   run the program                     -> value null
    {"id", "op": "call", "name", "args", "kwargs"}    call a global                       -> its result
    {"id", "op": "apply", "handle", "args", "kwargs"} call an object kept under a handle  -> its result
    {"id", "op": "get", "handle", "name"}             attribute of a kept object          -> its value
    {"id", "op": "set", "handle", "name", "args"}     set an attribute of a kept object   -> value null
    {"id", "op": "special", "handle", "name", "args"} `len`, `str`, .. of a kept object   -> its result
    {"id", "op": "bye"}                               stop                                -> value null

An answer is `{"id", "value"}` or `{"id", "error": [type, text]}`.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from reward.code.protocol import Decoder, Encoder, EndOfFrames, ProtocolError, dumps, loads, read_frame, write_frame

MODULE_NAME = "candidate"
_MAX_TEXT = 300
_SPECIAL: dict[str, Callable[..., Any]] = {
    "len": len,
    "str": str,
    "repr": repr,
    "list": list,
    "item": operator.getitem,
    "contains": operator.contains,
}


class Candidate:
    """The program's globals, and the objects that the tests hold handles on."""

    def __init__(self) -> None:
        self._module = types.ModuleType(MODULE_NAME)
        self._kept: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What came of a request."""
        try:
            value = Encoder(self._handle_of).encode(self._do(request))
        except BaseException as error:  # noqa: BLE001 - whatever the program raises is an answer
            return {"id": request["id"], "error": [type(error).__name__, _text_of(error)]}
        return {"id": request["id"], "value": value}

    def _do(self, request: dict[str, Any]) -> Any:
        op = request["op"]
        if op == "load":
            return self._load(request["program"])
        if op == "bye":
            return None
        decoder = Decoder(self._kept.__getitem__, types=True)
        if op == "get":
            return getattr(self._kept[request["handle"]], request["name"])
        args = decoder.items(request["args"], 0)
        if op == "set":
            return setattr(self._kept[request["handle"]], request["name"], *args)
        if op == "special":
            return _SPECIAL[request["name"]](self._kept[request["handle"]], *args)
        kwargs = {name: decoder.decode(data) for name, data in request["kwargs"].items()}
        function = self._global(request["name"]) if op == "call" else self._kept[request["handle"]]
        return function(*args, **kwargs)

    def _load(self, program: str) -> None:
        sys.modules[MODULE_NAME] = self._module
        code = compile(program, "program.py", "exec", dont_inherit=True)
        exec(code, self._module.__dict__)

    def _global(self, name: str) -> Any:
        try:
            return self._module.__dict__[name]
        except KeyError:
            raise NameError(f"name {name!r} is not defined") from None

    def _handle_of(self, value: Any) -> int:
        """Number of an object; the same object keeps its number, and is kept alive so that its `id` stays its own."""
        number = self._numbers.setdefault(id(value), len(self._numbers) + 1)
        self._kept[number] = value
        return number


def serve(channel_in: int, channel_out: int, *, max_frame: int = 1 << 20) -> None:
    """Answer requests until the tests say bye or hang up."""
    candidate = Candidate()
    while True:
        try:
            request = loads(read_frame(channel_in))
        except EndOfFrames:
            return
        payload = dumps(candidate.answer(request))
        if len(payload) > max_frame:
            why = f"a result of {len(payload)} bytes; at most {max_frame} may cross"
            payload = dumps({"id": request["id"], "error": [ProtocolError.__name__, why]})
        write_frame(channel_out, payload)
        if request["op"] == "bye":
            return


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:_MAX_TEXT]
    except BaseException:  # noqa: BLE001 - the program's own `__str__`
        return ""
