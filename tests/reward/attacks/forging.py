# ruff: noqa: E501 - programs as texts
"""Attacks on the verdict: the program tries to be taken for a right one, or to learn what is expected."""

FAIL = "\ndef total(xs):\n    return -1\n"
"""A wrong answer behind the attack."""

EXITS = {
    "exit 0 on import": "import sys\nsys.exit(0)",
    "hard exit 0 on import": "import os\nos._exit(0)",
    "raise SystemExit": "raise SystemExit(0)",
    "exit 0 in the call": "import sys\ndef total(xs):\n    sys.exit(0)",
    "hard exit 0 in the call": "import os\ndef total(xs):\n    os._exit(0)",
    "exit from a thread": "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()" + FAIL,
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)" + FAIL,
    "end by a signal": "import os, signal\ndef total(xs):\n    os.kill(os.getpid(), signal.SIGTERM)",
    "abort": "import os\ndef total(xs):\n    os.abort()",
    "keyboard interrupt": "def total(xs):\n    raise KeyboardInterrupt",
    "exit in a generator": "import sys\ndef total(xs):\n    yield sys.exit(0)",
    "right once, then gone": "import os\ncalls = []\ndef total(xs):\n    calls.append(1)\n"
    "    if len(calls) > 5:\n        os._exit(0)\n    return sum(xs)",
    "gone after the last answer": "import os, threading, time\ncalls = []\ndef total(xs):\n    calls.append(1)\n"
    "    if len(calls) == 6:\n        os.close(4)\n    return sum(xs)",
    "assertions switched off": "import os, sys\nos.execv(sys.executable, [sys.executable, '-O', '-c', 'pass'])" + FAIL,
}

EQUALS = {
    "equal to all": "class Any:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
    "    def __lt__(self, other): return True\ndef total(xs):\n    return Any()",
    "unequal to none": "class Any:\n    def __ne__(self, other): return False\n    __eq__ = lambda *_: True\n"
    "def total(xs):\n    return Any()",
    "int with an easy equality": "class I(int):\n    def __eq__(self, other): return True\n"
    "    __hash__ = int.__hash__\ndef total(xs):\n    return I(7)",
    "float with an easy equality": "class F(float):\n    def __eq__(self, other): return True\n"
    "def total(xs):\n    return F(7)",
    "str that is everything": "class S(str):\n    def __eq__(self, other): return True\ndef total(xs):\n    return S('')",
    "list with an easy equality": "class L(list):\n    def __eq__(self, other): return True\n"
    "def total(xs):\n    return L()",
    "dict with an easy equality": "class D(dict):\n    def __eq__(self, other): return True\n"
    "def total(xs):\n    return D()",
    "tuple with an easy equality": "class T(tuple):\n    def __eq__(self, other): return True\n"
    "def total(xs):\n    return T()",
    "class equal to all": "class M(type):\n    def __eq__(cls, other): return True\n    __hash__ = type.__hash__\n"
    "class C(metaclass=M): pass\ndef total(xs):\n    return C",
    "mock.ANY": "from unittest.mock import ANY\ndef total(xs):\n    return ANY",
    "passes for an int": "class P:\n    @property\n    def __class__(self): return int\n"
    "    def __eq__(self, other): return True\n    def __index__(self): return 6\ndef total(xs):\n    return P()",
    "data class equal to all": "import dataclasses\n@dataclasses.dataclass(eq=False)\nclass D:\n    x: int = 0\n"
    "    def __eq__(self, other): return True\ndef total(xs):\n    return D()",
    "fraction equal to all": "from fractions import Fraction\nclass F(Fraction):\n"
    "    def __eq__(self, other): return True\ndef total(xs):\n    return F(1, 2)",
    "decimal equal to all": "from decimal import Decimal\nclass D(Decimal):\n    def __eq__(self, other): return True\n"
    "def total(xs):\n    return D(1)",
    "counter equal to all": "from collections import Counter\nclass C(Counter):\n"
    "    def __eq__(self, other): return True\ndef total(xs):\n    return C()",
    "equal inside a list": "class Any:\n    def __eq__(self, other): return True\ndef total(xs):\n    return [Any()]",
    "reduced to a right answer": "class R:\n    def __reduce__(self): return (int, (6,))\n    __eq__ = lambda *_: True\n"
    "def total(xs):\n    return R()",
    "not a number": "def total(xs):\n    return float('nan')",
}

PEEKING = {
    "expected value in the frames": """
import sys
def total(xs):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [v for v in [*frame.f_locals.values(), *frame.f_code.co_consts] if type(v) is int and v != -1]
        frame = frame.f_back
    return seen[-1] if seen else -1
""",
    "test text in the heap": """
import gc, re
def total(xs):
    for found in gc.get_objects():
        for text in (found.values() if type(found) is dict else [found]):
            if type(text) is str and (match := re.search(r'total\\(.*\\) == (\\d+)', text)):
                return int(match[1])
    return -1
""",
    "test text in memory": """
import re
def total(xs):
    for line in open('/proc/self/maps'):
        start, end = (int(x, 16) for x in line.split()[0].split('-'))
        try:
            with open('/proc/self/mem', 'rb') as memory:
                memory.seek(start)
                match = re.search(rb'assert total\\(\\[\\]\\) == (\\d+)', memory.read(min(end - start, 1 << 24)))
        except (OSError, ValueError, OverflowError):
            continue
        if match:
            return int(match[1])
    return -1
""",
    "traced": "import sys\ndef trace(frame, event, arg):\n    frame.f_trace_lines = True\n"
    "    if event == 'return' and 'value' in frame.f_locals:\n        frame.f_locals['value'] = 6\n    return trace\n"
    "sys.settrace(trace)" + FAIL,
    "profiled": "import sys\nsys.setprofile(lambda frame, event, arg: frame.f_locals.update(value=6))" + FAIL,
    "patched encoder": """
import sys
for module in list(sys.modules.values()):
    if hasattr(module, 'Encoder'):
        module.Encoder.encode = lambda self, value, depth=0: ['h', 1]
def total(xs):
    return -1
""",
    "patched dumps": """
import json, sys
plain = json.dumps
def dumps(value, **options):
    if isinstance(value, dict) and 'value' in value:
        value = {**value, 'value': True, 'results': [['pass', '', True]] * 5}
    return plain(value, **options)
json.dumps = dumps
for module in list(sys.modules.values()):
    if hasattr(module, 'dumps'):
        module.dumps = lambda message: dumps(message).encode()
def total(xs):
    return -1
""",
    "patched built-ins": "import builtins\nfor name in ('sum', 'type', 'isinstance', 'len', 'sorted', 'AssertionError'):\n"
    "    setattr(builtins, name, lambda *a, **k: True)" + FAIL,
    "assertion error that is no error": "import builtins\nclass Quiet(BaseException):\n"
    "    def __new__(cls, *a): raise SystemExit(0)\nbuiltins.AssertionError = Quiet" + FAIL,
    "patched service": """
import sys
for module in list(sys.modules.values()):
    if hasattr(module, 'Candidate'):
        module.Candidate.answer = lambda self, request: {'id': request['id'], 'value': None}
def total(xs):
    return -1
""",
    "tests rewritten on disk": "for name in ('conftest.py', 'sitecustomize.py', 'json.py', 'test_total.py', 'usercustomize.py'):\n"
    "    open(name, 'w').write('import os; os._exit(0)')" + FAIL,
    "hidden in another encoding": "# -*- coding: utf-7 -*-\n+AGkAbQBwAG8AcgB0- os+ADs- os._exit(0)" + FAIL,
    "null bytes": "def total(xs):\n    return sum(xs)\n\0",
    "import hook": "import sys\nclass Finder:\n    def find_spec(self, *a): sys.exit(0)\nsys.meta_path.insert(0, Finder())"
    + FAIL,
    "alarm that leaves": "import os, signal\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.05)\ndef total(xs):\n    while True: pass",
}

FRAMES = {
    "answers on every descriptor": """
import json, os
def total(xs):
    for fd in range(3, 64):
        for text in ({'id': '', 'value': 6}, {'results': [['pass', '', True]] * 5, 'fault': None, 'ending': None}):
            payload = json.dumps(text).encode()
            for data in (payload, b'V' + payload, b'A' + payload):
                try:
                    os.write(fd, len(data).to_bytes(4, 'big') + data)
                except OSError:
                    pass
    return -1
""",
    "a report in place of an answer": """
import json, os
report = json.dumps({'fault': None, 'results': [['pass', '', True]] * 5, 'ending': None, 'leaves_no_trace': True})
def total(xs):
    data = b'V' + report.encode()
    os.write(CHANNEL_OUT if 'CHANNEL_OUT' in globals() else 4, len(data).to_bytes(4, 'big') + data)
    return -1
""",
    "two answers": """
import json, os, sys
def total(xs):
    frame = sys._getframe()
    while frame and 'request' not in frame.f_locals:
        frame = frame.f_back
    name = frame.f_locals['request']['id']
    data = json.dumps({'id': name, 'value': sum(xs)}).encode()
    os.write(4, len(data).to_bytes(4, 'big') + data)
    return sum(xs)
""",
    "answers ahead": """
import json, os
for value in (6, 0, 4717, 5, 4, 266815):
    data = json.dumps({'id': '0' * 16, 'value': value}).encode()
    os.write(4, len(data).to_bytes(4, 'big') + data)
def total(xs):
    return -1
""",
    "a frame of four gigabytes": "import os\ndef total(xs):\n    os.write(4, b'\\xff\\xff\\xff\\xff')\n    return sum(xs)",
    "a frame of two megabytes": "import os\ndef total(xs):\n"
    "    os.write(4, (1 << 21).to_bytes(4, 'big'))\n    os.write(4, b' ' * 1000)\n    return sum(xs)",
    "nested brackets": "import os\ndef total(xs):\n    data = b'[' * 500_000\n"
    "    data = len(data).to_bytes(4, 'big') + data\n    while data:\n        data = data[os.write(4, data):]\n"
    "    return sum(xs)",
    "no JSON": "import os\ndef total(xs):\n    os.write(4, b'\\0\\0\\0\\4\\xff\\xfe{}')\n    return sum(xs)",
    "an empty frame": "import os\ndef total(xs):\n    os.write(4, b'\\0\\0\\0\\0')\n    return sum(xs)",
    "a flood of frames": "import os\ndef total(xs):\n    while True:\n        os.write(4, b'\\0\\0\\0\\2{}' * 1000)",
    "half a frame": "import os, time\ndef total(xs):\n    os.write(4, b'\\0\\0\\1\\0{')\n    time.sleep(60)",
    "the channel closed": "import os\ndef total(xs):\n    os.close(4)\n    return sum(xs)",
    "the channel turned around": "import os\ndef total(xs):\n    os.dup2(3, 4)\n    return sum(xs)",
    "requests taken away": "import os, threading\ndef take():\n    while True: os.read(3, 1 << 16)\n"
    "threading.Thread(target=take, daemon=True).start()\ndef total(xs):\n    return sum(xs)",
    "duplicate keys": """
import os, sys
def total(xs):
    frame = sys._getframe()
    while frame and 'request' not in frame.f_locals:
        frame = frame.f_back
    name = frame.f_locals['request']['id']
    data = ('{"id":"%s","value":-1,"error":["E",""],"verdict":"pass"}' % name).encode()
    os.write(4, len(data).to_bytes(4, 'big') + data)
    return -1
""",
}

RESULTS = {
    "no end of items": "import itertools\ndef total(xs):\n    return itertools.count()",
    "a generator that never yields": "def total(xs):\n    while True:\n        pass\n    yield 6",
    "a list that holds itself": "def total(xs):\n    ys = []\n    ys.append(ys)\n    return ys",
    "a deep list": "def total(xs):\n    ys = []\n    for _ in range(10_000):\n        ys = [ys]\n    return ys",
    "two to the thirtieth lists": "def total(xs):\n    ys = [0]\n    for _ in range(30):\n        ys = [ys, ys]\n    return ys",
    "a long text": "def total(xs):\n    return 'x' * 50_000_000",
    "a huge number": "def total(xs):\n    return 10 ** 3_000_000",
    "numbers of one hash": "def total(xs):\n    return {(2**61 - 1) * i for i in range(1, 4000)}",
    "text that looks like an answer": "def total(xs):\n    return '{\"value\": 6}'",
    "a list that looks like a tag": "def total(xs):\n    return ['i', hex(sum(xs))]",
    "a handle to nothing": "def total(xs):\n    return ['h', 10**9]",
    "a function": "def total(xs):\n    return lambda: sum(xs)",
    "itself": "def total(xs):\n    return total",
    "a module": "import os\ndef total(xs):\n    return os",
    "an error that is the answer": "def total(xs):\n    raise ValueError(sum(xs))",
    "an error whose text does not end": "class E(Exception):\n    def __str__(self):\n        while True: pass\n"
    "def total(xs):\n    raise E",
    "an error group": "def total(xs):\n    raise ExceptionGroup('', [AssertionError()])",
    "an assertion error": "def total(xs):\n    raise AssertionError",
    "a coroutine": "async def total(xs):\n    return sum(xs)",
    "true": "def total(xs):\n    return True",
    "a right sum as a text": "def total(xs):\n    return str(sum(xs))",
    "a list of the right sum": "def total(xs):\n    return [sum(xs)]",
    "the list emptied": "def total(xs):\n    xs.clear()\n    return None",
}

FORGING = {**EXITS, **EQUALS, **PEEKING, **FRAMES, **RESULTS}
