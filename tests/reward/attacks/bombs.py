# ruff: noqa: E501 - programs as texts
"""Attacks on the machine: more time, memory, processes, threads, files or output than a program may have.

Each is wrong if it comes back at all, so that none may pass; what counts is that the next program finds a clean slot.
"""

_LATE = "\ndef total(xs):\n    return -1\n"

BOMBS = {
    "endless loop on import": "while True: pass",
    "endless loop in the call": "def total(xs):\n    while True: pass",
    "endless loop that catches all": "def total(xs):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass",
    "sleep": "import time\ntime.sleep(3600)",
    "reads a stdin that never comes": "import os\ndef total(xs):\n    os.read(3, 100)\n    os.read(3, 100)",
    "catastrophic pattern": "import re\ndef total(xs):\n    return re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "huge power": "def total(xs):\n    return len(str(7 ** 7 ** 8))",
    "ignores signals": "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break" + _LATE,
    "forked twice and gone": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        time.sleep(3600)\n    os._exit(0)" + _LATE,
    "subprocess": "import subprocess\nsubprocess.Popen(['/bin/sleep', '3600'])" + _LATE,
    "multiprocessing": "import multiprocessing\nmultiprocessing.Pool(16)" + _LATE,
    "thread bomb": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(3600,)).start()",
    "a thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()" + _LATE,
    "memory": "xs = []\nwhile True: xs.append(bytearray(1 << 20))",
    "memory that catches its error": "xs = []\nwhile True:\n    try:\n        while True: xs.append(bytearray(1 << 20))\n"
    "    except MemoryError: pass",
    "one huge allocation": "x = bytearray(1 << 40)" + _LATE,
    "shared memory": "import mmap\nxs = [mmap.mmap(-1, 1 << 24) for _ in range(64)]\nfor x in xs:\n    x[:] = b'1' * len(x)"
    + _LATE,
    "memory files": "import os\nfor i in range(32):\n    fd = os.memfd_create('x')\n    while True:\n"
    "        try: os.write(fd, b'1' * (1 << 20))\n        except OSError: break" + _LATE,
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\ndef total(xs):\n    return f(0)",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)"
    + _LATE,
    "brackets for the compiler": "x = " + "(" * 100_000,
    "minus signs for the compiler": "x = " + "-" * 200_000 + "1",
    "flood of stdout": "while True: print('x' * 10_000)",
    "flood of stderr": "import sys\nwhile True: sys.stderr.write('x' * 10_000)",
    "one large file": "with open('x', 'wb') as f:\n    while True: f.write(b'1' * (1 << 20))",
    "many files": "i = 0\nwhile True:\n    open(str(i), 'w').close()\n    i += 1",
    "many folders, one in the other": "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
    "full folder": "i = 0\nwhile True:\n    with open(str(i), 'wb') as f: f.write(b'1' * 900_000)\n    i += 1",
    "sparse file": "import os\nfd = os.open('x', os.O_CREAT | os.O_RDWR)\nos.truncate(fd, 1 << 50)" + _LATE,
    "all descriptors": "import os\nwhile True: os.dup(1)",
    "pipes filled": "import os\nwhile True:\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n    try: os.write(w, b'1' * (1 << 20))\n"
    "    except OSError: pass",
    "raised limits": "import resource\nfor name in ('CPU', 'AS', 'FSIZE', 'NOFILE', 'NPROC'):\n"
    "    try: resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (-1, -1))\n    except (OSError, ValueError): pass\n"
    "while True: pass",
    "unpacks a bomb": "import zlib\nxs = zlib.compress(bytes(1 << 27), 9)\nys = [zlib.decompress(xs) for _ in range(64)]"
    + _LATE,
    "null pointer": "import ctypes\nctypes.string_at(0)" + _LATE,
    "busy exit functions": "import atexit\ndef f():\n    while True: pass\natexit.register(f)" + _LATE,
    "garbage that never ends": "class G:\n    def __del__(self): G()\nG()" + _LATE,
}
