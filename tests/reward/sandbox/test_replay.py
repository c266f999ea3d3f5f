"""Sandboxes that only run a text to its end: a real HTTP service, and a real container in all but name."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from reward.sandbox.canaries import HOSTED, run_canaries
from reward.sandbox.config import SandboxConfig
from reward.sandbox.gvisor import GvisorSandbox
from reward.sandbox.interpreter import find_interpreter
from reward.sandbox.records import JobEnd, JobEnded, Limits, NoSandbox, SandboxError
from reward.sandbox.remote import RemoteSandbox
from reward.sandbox.sandbox import open_sandbox

ADDER = """
import os, sys
def exactly(n):
    data = b""
    while len(data) < n:
        part = os.read(CHANNEL_IN, n - len(data))
        if not part: sys.exit(0)
        data += part
    return data
total = 0
while True:
    number = int(exactly(int.from_bytes(exactly(4), "big")))
    print("got", number)
    total += number
    answer = str(total).encode()
    os.write(CHANNEL_OUT, len(answer).to_bytes(4, "big") + answer)
"""


def isolated(folder, *command, writable=False):
    """The command in namespaces of its own, with `folder` as /job."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        pytest.skip("bubblewrap is not installed")
    binds = [word for path in find_interpreter(None, None).read_paths for word in ("--ro-bind", path, path)]
    binds += ["--ro-bind", "/usr/bin", "/usr/bin", "--symlink", "usr/bin", "/bin"]
    binds += ["--bind" if writable else "--ro-bind", str(folder), "/job"]
    places = ["--tmpfs", "/tmp"] if not writable else ["--bind", str(folder), "/tmp"]
    alone = ["--unshare-all", "--die-with-parent", "--clearenv", "--proc", "/proc", "--dev", "/dev", "--chdir", "/tmp"]
    return [bubblewrap, *alone, *places, *binds, "--", *command]


class Service(http.server.ThreadingHTTPServer):
    """SandboxFusion's `/run_code`, one process per program."""

    def __init__(self, folder, *, holds=True):
        self.folder, self.holds, self.answer, self.num_runs = folder, holds, None, 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def run(self, request):
        self.num_runs += 1
        assert request["language"] == "python"
        path = self.folder / f"run{self.num_runs}.py"
        path.write_text(request["code"])
        command = [sys.executable, str(path)]
        if self.holds:
            command = isolated(self.folder, find_interpreter(None, None).path, f"/job/{path.name}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=request["run_timeout"], cwd=self.folder)
        result = {"status": "Finished", "return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        return {"status": "Failed" if done.returncode else "Success", "message": "", "run_result": result}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = self.server.answer if self.server.answer is not None else json.dumps(self.server.run(request)).encode()
        self.send_response(200 if self.path == "/run_code" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(tmp_path):
    running = []

    def start(**options):
        service = Service(tmp_path, **options)
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((service, thread))
        return service

    yield start
    for service, thread in running:
        service.shutdown()
        thread.join()
        service.server_close()


def test_remote_backend_is_taken_when_its_canaries_hold(serve):
    sandbox = open_sandbox(SandboxConfig(backend="remote", remote_url=serve().url))
    assert sandbox.backend == "remote"
    assert [canary.name for canary in sandbox.report.canaries] == list(HOSTED)
    assert sandbox.replays


def test_remote_service_that_isolates_nothing_is_refused(serve):
    service = serve(holds=False)
    with pytest.raises(NoSandbox) as caught:
        open_sandbox(SandboxConfig(backend="remote", remote_url=service.url))
    assert "canary `connect`" in str(caught.value)
    assert "canary `read a secret in a file`" in str(caught.value)


def test_conversation_is_replayed_with_one_frame_more_each_time(serve):
    service = serve()
    with RemoteSandbox(service.url).start(ADDER, limits=Limits()) as job:
        for number, total in ((5, b"5"), (7, b"12"), (-2, b"10")):
            job.send(str(number).encode())
            assert job.receive(20.0) == total
        assert job.finish() == (JobEnd.FINISHED, b"got 5\ngot 7\ngot -2\n", b"")
    assert service.num_runs == 3


def test_frames_sent_together_take_one_run(serve):
    service = serve()
    with RemoteSandbox(service.url).start(ADDER, limits=Limits()) as job:
        for number in (1, 2, 3):
            job.send(str(number).encode())
        assert [job.receive(20.0) for _ in range(3)] == [b"1", b"3", b"6"]
    assert service.num_runs == 1


def test_random_numbers_are_the_same_in_each_replay(serve):
    text = "import os\nsecret = os.urandom(4)\n" + ADDER.replace("str(total).encode()", "secret")
    with RemoteSandbox(serve().url).start(text, limits=Limits()) as job:
        job.send(b"1")
        first = job.receive(20.0)
        job.send(b"1")
        assert job.receive(20.0) == first
    assert len(first) == 4


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("print(input())", JobEnd.FINISHED),
        ("import os; os._exit(0)", JobEnd.FINISHED),
        ("1 / 0", JobEnd.CRASHED),
        ("import os; os.kill(os.getpid(), 11)", JobEnd.CRASHED),
        ("import os; os.kill(os.getppid(), 9)", JobEnd.CRASHED),
        ("x = [0] * 10**10", JobEnd.MEMORY),
        ("while True: pass", JobEnd.TIMEOUT),
        ("print('x' * 70_000)", JobEnd.OUTPUT_LIMIT),
        ("import os; os.write(CHANNEL_OUT, b'\\xff' * 8)", JobEnd.OUTPUT_LIMIT),
    ],
)
def test_end_of_a_remote_program_has_the_right_word(serve, text, end):
    with RemoteSandbox(serve().url).start(text, limits=Limits(wall_s=1.0), stdin=b"a line\n") as job:
        ended, stdout, _ = job.finish()
    assert ended is end
    assert stdout in (b"a line\n", b"", b"x" * 65536)


def test_program_that_says_no_more_ends_the_frames(serve):
    with RemoteSandbox(serve().url).start("raise SystemExit(4)", limits=Limits()) as job:
        job.send(b"1")
        with pytest.raises(JobEnded, match="crashed: exit status 4"):
            job.receive(20.0)


@pytest.mark.parametrize(
    "answer",
    [
        b"no JSON",
        b"[]",
        b"{}",
        b'{"status": "SandboxError", "message": "busy"}',
        b'{"status": "Success", "run_result": null}',
    ],
)
def test_service_that_answers_nonsense_is_an_error_and_no_end(serve, answer):
    service = serve()
    service.answer = answer
    with RemoteSandbox(service.url).start("print(1)", limits=Limits()) as job, pytest.raises(SandboxError):
        job.finish()


def test_service_that_is_not_there_is_an_error_and_no_end():
    job = RemoteSandbox("http://127.0.0.1:1").start("print(1)", limits=Limits())
    with pytest.raises(SandboxError, match="Connection refused"):
        job.finish()
    with pytest.raises(NoSandbox, match="Connection refused"):
        open_sandbox(SandboxConfig(backend="remote", remote_url="http://127.0.0.1:1"))


@pytest.mark.parametrize("url", ["ftp://host", "host:8080", "http://"])
def test_address_that_is_none_is_refused(url):
    with pytest.raises(NoSandbox, match="write it as http://host:port"):
        open_sandbox(SandboxConfig(backend="remote", remote_url=url))


class Runtime:
    """What the gVisor backend uses of Ray's runtime, over one folder of this host."""

    def __init__(self, folder):
        self.folder, self.deleted = folder, []

    def write_file(self, container, path, content):
        (self.folder / Path(path).name).write_text(content)

    def exec(self, container, command, *, timeout, user):
        done = subprocess.run(
            isolated(self.folder, *command, writable=True), capture_output=True, text=True, timeout=timeout
        )
        return SimpleNamespace(stdout=done.stdout, stderr=done.stderr, exit_code=done.returncode)

    def delete(self, container):
        self.deleted.append(container)


def test_gvisor_backend_runs_programs_and_leaves_nothing_in_the_container(tmp_path):
    pytest.importorskip("ray.experimental.sandbox")
    runtime = Runtime(tmp_path)
    sandbox = GvisorSandbox(runtime, "container-1")
    failed = [result for result in run_canaries(sandbox, HOSTED) if not result.passed]
    assert failed == []
    assert list(tmp_path.iterdir()) == []
    sandbox.close()
    assert runtime.deleted == ["container-1"]
