"""The service on Ray Serve: the same answers, clients that go away, an engine that is killed, and the config file."""

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import requests
import yaml

from rollout.serve import RayBackend, ServeConfig, application
from rollout.service.work import Done, Job

ROOT = Path(__file__).resolve().parents[2]
# A hole is filled to its end, one character a step: 400 steps.
LONG = {"prefix": "1+1=", "max_new_tokens": 400, "sampler": "ar", "seed": 1, "num_samples": 4}
SUM = {"prompt": "37+485=", "max_new_tokens": 8, "seed": 5, "num_samples": 2, "temperature": 0.8}
CONFIG = {
    "models": {"tiny": "tiny"}, "min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 0.1, "cpus_of_front": 0.1,
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

    assert until(lambda: active(address) == [0, 0])
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

    *_, done = asyncio.run(main())
    assert isinstance(done, Done), done
    assert until(lambda: len(active(address)) == 2)


def test_the_config_file_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "recipes/serve.yaml").read_text()))
    (found,) = schema.applications
    assert found.import_path == "rollout.serve:application"
    assert schema.http_options.host == "127.0.0.1"
    config = ServeConfig.model_validate(found.args)
    assert application(config) is not None
