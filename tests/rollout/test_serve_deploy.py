"""`serve deploy recipes/serve.yaml` on a Ray head started as a person would start it."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import requests
import yaml

from tests.cluster.test_job import free_port, fresh_environment

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_S = 300
SUM = {"prompt": "37+485=", "max_new_tokens": 8, "seed": 5, "num_samples": 2}


@pytest.fixture
def head(tmp_path):
    """(dashboard address, environment) of a head on loopback that knows this checkout; ended with the test."""
    home = tmp_path / "home"
    home.mkdir()
    # A folder of its own, with a short name for its sockets: other Rays of this machine note their address there too.
    folder = tempfile.mkdtemp(prefix="ray-")
    environment = fresh_environment(home)
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT)}
    dashboard = free_port()
    names = ("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "ray-client-server-port")
    ports = [word for name in names for word in (f"--{name}", str(free_port()))]
    ports += ["--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus", "4", "--disable-usage-stats", *ports]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
        try:
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            process.terminate()
            process.wait(timeout=90)
            shutil.rmtree(folder, ignore_errors=True)


def until(condition, timeout_s: float = START_S):
    """What a condition gives, once it gives something."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{condition.__name__} gave nothing within {timeout_s:g} s")


def test_the_config_file_is_deployed_changed_and_taken_away(head, tmp_path) -> None:
    dashboard, environment = head
    config = yaml.safe_load((ROOT / "recipes/serve.yaml").read_text())
    config["http_options"]["port"] = free_port()
    address = f"http://127.0.0.1:{config['http_options']['port']}"
    file = tmp_path / "serve.yaml"

    def serve(*arguments: str) -> str:
        done = subprocess.run(
            [BIN / "serve", *arguments, "-a", dashboard],
            env=environment, cwd=tmp_path, timeout=START_S, check=False, text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy() -> None:
        file.write_text(yaml.safe_dump(config))
        serve("deploy", str(file))

    def running() -> bool:
        status = requests.get(f"{dashboard}/api/serve/applications/", timeout=30).json()["applications"]
        found = status.get("unmask", {})
        assert found.get("status") != "DEPLOY_FAILED", found.get("message")
        return found.get("status") == "RUNNING" and requests.get(f"{address}/healthz", timeout=30).ok

    until(lambda: requests.get(f"{dashboard}/api/version", timeout=30).ok)
    deploy()
    until(running)
    first = requests.post(f"{address}/v1/rollouts", json=SUM, timeout=120).json()
    assert len(first["rollouts"]) == 2
    assert requests.get(address, timeout=60).text.lstrip().lower().startswith("<!doctype html>")

    config["applications"][0]["args"]["service"]["limits"]["max_new_tokens"] = 16
    deploy()
    body = SUM | {"max_new_tokens": 17}
    until(lambda: requests.post(f"{address}/v1/rollouts", json=body, timeout=120).status_code == 400)
    until(running)
    assert requests.post(f"{address}/v1/rollouts", json=SUM, timeout=120).json()["rollouts"] == first["rollouts"]

    def is_gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", config["http_options"]["port"])) != 0

    serve("shutdown", "-y")
    until(is_gone)
