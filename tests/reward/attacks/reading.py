"""Attacks on programs that are graded by what they print."""

READING = {
    "nothing": "pass",
    "every number": "for i in range(100_000): print(i)",
    "exit 0": "import sys\nsys.exit(0)",
    "right, then an error": "n = int(input())\nprint(n * n + 4711)\nraise SystemExit(1)",
    "right, then no end": "n = int(input())\nprint(n * n + 4711, flush=True)\nwhile True: pass",
    "right, on stderr": "import sys\nn = int(input())\nprint(n * n + 4711, file=sys.stderr)",
    "right, among other lines": "n = int(input())\nprint(n * n + 4711)\nprint('pass')",
    "right, on another descriptor": "import os\nn = int(input())\nos.write(4, b'%d' % (n * n + 4711))",
    "flood": "while True: print(4711)",
    "expected output on disk": "import glob\nfor path in glob.glob('/tmp/**', recursive=True) + glob.glob('*'):\n"
    "    try: print(open(path).read())\n    except OSError: pass",
    "input as output": "import shutil, sys\nshutil.copyfileobj(sys.stdin, sys.stdout)",
    "a frame": "import os\nos.write(4, b'\\0\\0\\0\\4pass')\nprint('pass')",
    "escape codes": "n = int(input())\nprint('\\x1b[2K', n * n + 4711)",
    "invalid bytes": "import os\nos.write(1, b'\\xff\\xfe\\0')",
}
"""Each must be rejected."""
