"""The service on Ray Serve: the same answers, clients that go away, an engine that is killed, and the config file."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml
from pydantic import ValidationError

from rollout.serve import RayBackend, ServeConfig, application
from rollout.service.work import Accepted, Done, Job

ROOT = Path(__file__).resolve().parents[2]
# A hole is filled to its end, one character a step: 400 steps.
LONG = {"prefix": "1+1=", "max_new_tokens": 400, "sampler": "ar", "seed": 1, "num_samples": 4}
SUM = {"prompt": "37+485=", "max_new_tokens": 8, "seed": 5, "num_samples": 2, "temperature": 0.8}
CONFIG = {
    "models": {"tiny": "tiny", "twin": "tiny"}, "min_replicas": 2, "max_replicas": 2,
    "cpus_per_replica": 0.1, "cpus_of_front": 0.1,
    "grader": "cluster.serve_grading:grader",
}  # fmt: skip

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def address(local_ray):
    from ray import serve

    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(ServeConfig.model_validate(CONFIG)), name="unmask")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def active(address: str) -> list[float]:
    """Sequences in each engine."""
    lines = requests.get(f"{address}/metrics", timeout=60).text.splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("unmask_engine_active{")]


def engines(address: str) -> set[str]:
    """Engines that answer; their labels begin with the replica's name."""
    lines = requests.get(f"{address}/metrics", timeout=60).text.splitlines()
    return {line.split('"')[1].split("/")[0] for line in lines if line.startswith("unmask_engine_active{")}


def until(condition, timeout_s: float = 120.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_answers_on_ray_are_those_of_the_engine(address) -> None:
    import models
    import rollout
    import samplers

    assert until(lambda: len(engines(address)) == 2)
    denoiser = models.load("tiny")
    engine = rollout.Engine(denoiser, samplers.build("confidence"))
    prompt = models.encode_prompt(denoiser, SUM["prompt"])
    expected = engine.generate([prompt], num_samples=2, max_new_tokens=8, seed=5, temperature=0.8)
    answer = requests.post(f"{address}/v1/rollouts", json=SUM, timeout=120).json()
    assert [one["tokens"] for one in answer["rollouts"]] == [one.tokens.tolist() for one in expected]
    with requests.post(f"{address}/v1/rollouts", json=SUM | {"stream": True}, stream=True, timeout=120) as stream:
        lines = [line for line in stream.iter_lines(decode_unicode=True) if line]
    assert lines[-1] == "data: [DONE]"
    assert sum(line == "event: done" for line in lines) == 2
    wrong = requests.post(f"{address}/v1/rollouts", json=SUM | {"sampler": "confidense"}, timeout=120)
    assert wrong.status_code == 400
    assert "did you mean 'confidence'" in wrong.json()["error"]["message"]


def test_openais_endpoints_count_and_stream_on_ray_too(address) -> None:
    body = {"prompt": ["37+485=", "1+1="], "max_tokens": 8, "seed": 1, "echo": True}
    whole = requests.post(f"{address}/v1/completions", json=body, timeout=120).json()
    assert whole["usage"]["prompt_tokens"] == 7 + 4
    assert [choice["text"][:4] for choice in whole["choices"]] == ["37+4", "1+1="]
    chat = {"messages": [{"role": "user", "content": "1+1="}], "max_tokens": 8, "seed": 1, "stream": True}
    with requests.post(f"{address}/v1/chat/completions", json=chat, stream=True, timeout=120) as stream:
        lines = [line for line in stream.iter_lines(decode_unicode=True) if line]
    assert '"role":"assistant"' in lines[0]
    assert lines[-1] == "data: [DONE]"


def test_models_are_served_by_name(address) -> None:
    cards = requests.get(f"{address}/v1/models", timeout=60).json()["data"]
    assert [card["id"] for card in cards] == ["tiny", "twin"]
    one, other = (
        requests.post(f"{address}/v1/rollouts", json=SUM | {"model": name}, timeout=120).json()
        for name in ("tiny", "twin")
    )
    assert (one["model"], other["model"]) == ("tiny", "twin")
    assert one["rollouts"] == other["rollouts"]
    missing = requests.post(f"{address}/v1/rollouts", json=SUM | {"model": "none"}, timeout=120)
    assert missing.status_code == 404


def test_answers_may_be_graded_by_a_task(address) -> None:
    from reward import task

    row = task("arithmetic").rows("test")[0]
    prompt = task("arithmetic").prompt(row)
    text = {"prompt": prompt.text} if prompt.text else {"messages": [dict(turn) for turn in prompt.messages]}
    body = {"max_new_tokens": 8, "temperature": 0.0, "task": {"name": "arithmetic", "row": dict(row)}, **text}
    answer = requests.post(f"{address}/v1/rollouts", json=body, timeout=120).json()
    (rollout,) = answer["rollouts"]
    graded = task("arithmetic").grade(row, rollout["text"])
    assert rollout["reward"] == {"value": graded.value, "parts": dict(graded.parts)}
    body["task"]["name"] = "humaneval"
    assert requests.post(f"{address}/v1/rollouts", json=body, timeout=120).status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_engine(address, stream) -> None:
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(LONG | {"stream": stream})
    head = f"POST /v1/infill HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as gone:
        gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert until(lambda: sum(active(address)) == 4)
    assert until(lambda: sum(active(address)) == 0)


def test_an_answer_of_a_killed_engine_is_made_by_another_one(address) -> None:
    from ray import serve

    async def main() -> list[Done]:
        handle = serve.get_deployment_handle("engine", "unmask")
        backend = RayBackend(handle, ["tiny"])
        job = Job("tiny", seed=1, segments=("1+1=", 300), sampler="ar", bars_end=True)
        work = asyncio.create_task(collect(backend, job))
        busy: list = []
        while not busy and not work.done():
            busy = [state for state in await backend.states() if state.active]
        os.kill(busy[0].pid, signal.SIGKILL)
        return await asyncio.wait_for(work, 120)

    async def collect(backend: RayBackend, job: Job) -> list[Done]:
        return [heard async for batch in backend.run(job) for heard in batch]

    accepted, done = asyncio.run(main())
    assert isinstance(accepted, Accepted)
    assert isinstance(done, Done)
    assert until(lambda: len(engines(address)) == 2)


def test_the_config_file_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "recipes/serve.yaml").read_text()))
    (found,) = schema.applications
    assert found.import_path == "rollout.serve:application"
    assert schema.http_options.host == "127.0.0.1"
    assert application(found.args) is not None
    with pytest.raises(ValidationError, match="max_replica\n"):
        application({"max_replica": 2})


class Trickle:
    """Clients that send one request after the other, and what they got other than an answer."""

    def __init__(self, address: str, pool: ThreadPoolExecutor) -> None:
        self._address, self._pool = address, pool
        self._clients: list[Future[None]] = []
        self._ended = threading.Event()
        self.num_answers, self.wrong = 0, list[str]()

    def begin(self, number: int, body: dict) -> None:
        """So many more clients."""
        self._clients += [self._pool.submit(self._run, body) for _ in range(number)]

    def end(self) -> None:
        """Stop when every client has its last answer."""
        self._ended.set()
        for client in self._clients:
            client.result()
        self._clients.clear()
        self._ended.clear()

    def _run(self, body: dict) -> None:
        while not self._ended.is_set():
            answer = requests.post(f"{self._address}/v1/infill", json=body, timeout=300)
            self.num_answers += 1
            is_whole = not body.get("stream") or answer.text.endswith("data: [DONE]\n\n")
            if answer.status_code != 200 or not is_whole:
                self.wrong.append(f"{answer.status_code}: {answer.text}")


@pytest.mark.slow
def test_engines_come_with_the_load_and_go_without_dropping_anything(address) -> None:
    from ray import serve

    scaling = {"min_replicas": 1, "target_ongoing_requests": 4, "upscale_delay_s": 1, "downscale_delay_s": 3}
    short, long = LONG | {"max_new_tokens": 8, "num_samples": 1}, LONG | {"max_new_tokens": 150, "num_samples": 1}
    with ThreadPoolExecutor(16) as pool:
        always, burst = Trickle(address, pool), Trickle(address, pool)
        always.begin(1, short)
        always.begin(1, long)
        always.begin(1, long | {"stream": True})
        assert until(lambda: sum(active(address)) > 0)
        # Redeployed with other settings while requests are under way: every process is replaced.
        before = engines(address)
        serve.run(application(ServeConfig.model_validate(CONFIG | scaling)), name="unmask")
        assert until(lambda: len(engines(address)) == 1 and not engines(address) & before)
        burst.begin(8, long)
        assert until(lambda: len(engines(address)) == 2)
        burst.end()
        assert until(lambda: len(engines(address)) == 1)
        num_answers = always.num_answers
        assert until(lambda: always.num_answers > num_answers + 4)
        always.end()
    assert always.wrong + burst.wrong == []
