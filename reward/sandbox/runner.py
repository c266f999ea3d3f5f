"""The program sent to a sandbox that only runs one text to its end and returns what it printed.

Its first line names the job. It runs the untrusted program as a child, gives it the frames sent so far, and prints one
line: a mark, then base64 of JSON with the frames that came back, the output, and how the program ended. The child's
randomness is fixed, so that it says the same again when it is run again with one frame more. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

_BOOT = """
def boot():
    import os, random, sys
    text, seed, channel_in, channel_out = sys.argv[1:]
    with open(text, "rb") as file: source = file.read()
    sys.argv[:] = ["main.py"]
    os.environ.clear()
    os.urandom = random.Random(seed).randbytes
    random.seed(seed)
    scope = sys.modules["__main__"].__dict__
    del scope["boot"]
    scope.update(CHANNEL_IN=int(channel_in), CHANNEL_OUT=int(channel_out))
    try:
        exec(compile(source, "main.py", "exec", dont_inherit=True), scope)
    except MemoryError:
        os.write(2, b"MemoryError\\n")
        os._exit(86)
boot()
"""


def pump(stream: IO[bytes], limit: int, kept: bytearray, totals: dict[str, int], name: str) -> None:
    """Read a stream to its end and keep its first bytes."""
    while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
        totals[name] += len(data)
        kept += data[: max(0, limit - len(kept))]


def feed(stream: IO[bytes], data: bytes) -> None:
    """Write everything, if it is read."""
    try:
        with stream:
            stream.write(data)
    except OSError:
        return


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run the program once; what came out."""
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "program")
        with open(text, "wb") as file:
            file.write(base64.b64decode(job["source"]))
        os.mkdir(os.path.join(folder, "work"))
        in_reads, in_writes = os.pipe()
        out_reads, out_writes = os.pipe()

        def limit() -> None:
            for name, amount in job["rlimits"]:
                resource.setrlimit(getattr(resource, name), (amount, amount))

        child = subprocess.Popen(
            [
                sys.executable or "/proc/self/exe",
                "-s",
                "-X",
                "utf8",
                "-c",
                _BOOT,
                text,
                job["seed"],
                str(in_reads),
                str(out_writes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(in_reads, out_writes),
            cwd=os.path.join(folder, "work"),
            env={"PYTHONHASHSEED": "0"},
            preexec_fn=limit,
            start_new_session=True,
        )
        os.close(in_reads)
        os.close(out_writes)
        return collect(child, job, os.fdopen(in_writes, "wb"), os.fdopen(out_reads, "rb"))


def collect(child: subprocess.Popen[bytes], job: dict[str, Any], to: IO[bytes], back: IO[bytes]) -> dict[str, Any]:
    """Carry bytes until the program ends, or until its time is over."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    kept = {name: bytearray() for name in ("stdout", "stderr", "frames")}
    totals = dict.fromkeys(kept, 0)
    streams = {"stdout": child.stdout, "stderr": child.stderr, "frames": back}
    feeds = ((child.stdin, base64.b64decode(job["stdin"])), (to, base64.b64decode(job["frames"])))
    threads = [threading.Thread(target=feed, args=pair, daemon=True) for pair in feeds]
    for name, stream in streams.items():
        arguments = (stream, job["limits"][name], kept[name], totals, name)
        threads.append(threading.Thread(target=pump, args=arguments, daemon=True))
    for thread in threads:
        thread.start()
    late = False
    try:
        child.wait(job["wall_s"])
    except subprocess.TimeoutExpired:
        late = True
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, 9)
    child.wait()
    for thread in threads[2:]:
        thread.join(1.0)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "status": child.returncode,
        "late": late,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "totals": totals,
        **{name: base64.b64encode(bytes(data)).decode() for name, data in kept.items()},
    }


def main(text: str) -> None:
    """Run a job given as JSON."""
    job = json.loads(text)
    print(job["mark"] + base64.b64encode(json.dumps(run(job)).encode()).decode(), flush=True)  # noqa: T201
    os._exit(0)
