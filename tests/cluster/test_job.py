"""The same run as a submitted job, on a Ray head started as a person would start it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.ray_start import ray_session
from learner import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.ray]

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_S = 400


def fresh_environment(home):
    """This process's, without a Ray it may be connected to, in a home where nothing was ever started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "PATH": f"{BIN}:{kept['PATH']}", "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def python(code, environment, timeout_s):
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, timeout=timeout_s, check=False, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def head(tmp_path):
    """Dashboard address of a Ray head, ended with the test."""
    home = tmp_path / "home"
    home.mkdir()
    environment = fresh_environment(home)
    # What a person may have done before: a local run, which must leave nothing that protects later clusters.
    python(
        f"from {ray_session.__module__} import *\nwith ray_session(ClusterConfig(num_cpus=1)): pass",
        environment,
        START_S,
    )
    assert not (home / ".ray").exists()
    port = free_port()
    # Every port that is fixed by default: another Ray on this machine may have them, and jobs go through the agent.
    names = ("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "ray-client-server-port")
    ports = [word for name in names for word in (f"--{name}", str(free_port()))]
    ports += ["--dashboard-port", str(port), "--object-store-memory", str(200 * 2**20)]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--num-cpus", "4", "--disable-usage-stats", *ports],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://127.0.0.1:{port}", environment
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def cluster(head, tmp_path, small_model):
    """Runs `ray job` commands against the head, and submits training runs of a recipe from a fresh checkout."""
    address, environment = head
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "shared"))
    recipe = {
        "name": "job",
        "runs_dir": str(tmp_path / "runs"),
        "steps": 1,
        "prompts_per_step": 2,
        "model": {"path": str(small_model)},
        "tasks": [{"name": "arithmetic"}],
        "eval": {"limit": 4, "max_new_tokens": 2},
        "rollout": {"max_new_tokens": 2, "num_samples": 2, "cpus_per_worker": 0.5},
        "learner": {"engine": {"cpus_per_rank": 0.5, "micro_batch_tokens": 512}},
        "cluster": {"address": "local", "num_cpus": 64},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    wait_for_head = f"""
import time
from ray.job_submission import JobSubmissionClient
for _ in range({START_S}):
    try:
        JobSubmissionClient({address!r})
        break
    except (ConnectionError, RuntimeError) as error:
        last = error
        time.sleep(1)
else:
    raise last
"""
    python(wait_for_head, environment, 2 * START_S)

    def job(*words):
        command = [BIN / "ray", "job", words[0], "--address", address, *words[1:]]
        return subprocess.run(
            command, env=environment, cwd=checkout, timeout=3 * START_S, check=False, text=True, capture_output=True
        )

    def submit(*arguments, options=()):
        entry = f"from cluster.cli import main; main(['train', {str(tmp_path / 'recipe.yaml')!r}, *{arguments!r}])"
        done = job("submit", "--working-dir", ".", *options, "--", "python", "-c", entry)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return job, submit, tmp_path / "runs" / "job"


def test_a_submitted_job_runs_on_the_cluster_it_was_submitted_to(cluster):
    _, submit, run_dir = cluster
    submit()
    assert (run_dir / "checkpoints" / "step_000001" / "model" / "config.json").exists()


def test_a_stopped_job_commits_and_the_same_job_goes_on_from_there(cluster):
    job, submit, run_dir = cluster
    wait = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "100"}})
    first = ["--no-wait", "--submission-id", "first", "--runtime-env-json", wait]
    submit("--resume", "--set", "steps=100000", options=first)
    wait_until(lambda: (run_dir / "metrics.jsonl").is_file() and len(steps_of(run_dir)) > 2)
    stopped = job("stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    wait_until(lambda: "was stopped" in job("status", "first").stdout)
    commit = checkpoint.latest(run_dir / "checkpoints")
    steps = steps_of(run_dir)
    # checkpoint.every is 0: nothing but the stop has written one, of the last step that was done
    assert commit.name == f"step_{steps[-1]:06d}"
    submit("--resume", "--set", f"steps={steps[-1] + 2}")
    # not one step was made again
    assert steps_of(run_dir) == [*steps, steps[-1] + 1, steps[-1] + 2]
    assert (run_dir / "logs" / "attempt_2").is_dir()
    assert checkpoint.latest(run_dir / "checkpoints").name == f"step_{steps[-1] + 2:06d}"


def steps_of(run_dir):
    """Steps that were trained, as often and in the order in which they were."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]
    return [row["step"] for row in rows]


def wait_until(condition):
    until = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)
