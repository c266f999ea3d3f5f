"""What runs in each jail: several files of this package as one program.

The text that a jail is started with is a few lines that take the first frame and run it: compiled code, made here once,
so that no program waits for a compiler. A jail that runs another Python gets the files' texts instead.
"""

from __future__ import annotations

import functools
import marshal
from dataclasses import dataclass
from importlib.resources import files
from types import CodeType

_PACKAGE = "reward.code"
_U = ("protocol", "rare", "child")
_T = ("protocol", "rare", "stand_in", "plan", "pytest_like", "trusted")
_LAZY = ("rare", "pytest_like")
"""Run when something of them is first asked for."""
_TAKE = """
import marshal, os
def take(size):
    data = b""
    while len(data) < size:
        part = os.read(CHANNEL_IN, size - len(data))
        if not part:
            raise SystemExit
        data += part
    return data
main, parts = marshal.loads(take(int.from_bytes(take(4), "big")))
exec(main, {"parts": parts, "run": exec, "unpack": marshal.loads, "CHANNEL_IN": CHANNEL_IN,
            "CHANNEL_OUT": CHANNEL_OUT})
"""
_MAIN = """
import sys, types
def lazy(module, code):
    def fill(name):
        if "__getattr__" not in module.__dict__:
            raise AttributeError(name)
        del module.__dict__["__getattr__"]
        run(unpack(code), module.__dict__)
        return getattr(module, name)
    module.__dict__["__getattr__"] = fill
for name, is_lazy, code in parts:
    module = sys.modules[name] = types.ModuleType(name)
    if is_lazy:
        lazy(module, code)
    else:
        run(code, module.__dict__)
module.serve(CHANNEL_IN, CHANNEL_OUT, {arguments})
"""


@dataclass(frozen=True, slots=True)
class Side:
    """A program for a jail."""

    text: str
    first_frame: bytes | None
    """To be sent before anything else; None if the text is all."""


@functools.cache
def candidate_side(*, max_frame: int, compiled: bool) -> Side:
    """U. `compiled`: for the Python that runs here."""
    return _side(_U, _MAIN.replace("{arguments}", f"max_frame={max_frame}"), compiled=compiled)


@functools.cache
def tests_side(*, compiled: bool) -> Side:
    """T."""
    return _side(_T, _MAIN.replace("{arguments}", ""), compiled=compiled)


def _side(names: tuple[str, ...], main: str, *, compiled: bool) -> Side:
    texts = {name: (files(_PACKAGE) / f"{name}.py").read_text(encoding="utf-8") for name in names}
    if not compiled:
        parts = [(f"{_PACKAGE}.{name}", name in _LAZY, text) for name, text in texts.items()]
        return Side(f"parts = {parts!r}\nrun = exec\nunpack = str\n{main}", None)
    codes = [
        (f"{_PACKAGE}.{name}", name in _LAZY, marshal.dumps(code) if name in _LAZY else code)
        for name, text in texts.items()
        for code in [_compiled(text, name)]
    ]
    return Side(_TAKE, marshal.dumps((_compiled(main, "main"), codes)))


def _compiled(text: str, name: str) -> CodeType:
    return compile(text, f"{name}.py", "exec", dont_inherit=True, optimize=2)
