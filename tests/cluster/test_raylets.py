"""Several raylets on one machine stand for several machines: where actors go, and what the loss of a machine does."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.stop_signal import STATUS
from tests.cluster.raylets import LINK

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]


def environment():
    """This process's without its Ray; a cluster in it has a token that nobody else has, and writes none into a file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}


def run(what, folder, *, prefix=(), env=None, timeout_s=900):
    """What `tests.cluster.raylets` finds, in a process that knows nothing of this one's Ray."""
    command = [*prefix, sys.executable, "-m", "tests.cluster.raylets", what, str(folder)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=env or environment(),
        check=False,
        text=True,
        capture_output=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def write_recipe(folder, model, steps, **changes):
    recipe = {
        "name": "nodes",
        "runs_dir": str(folder / "runs"),
        "steps": steps,
        "prompts_per_step": 4,
        "model": {"path": str(model)},
        "tasks": [{"name": "arithmetic"}],
        "eval": {"limit": 4, "max_new_tokens": 2},
        "rollout": {"num_workers": 2, "max_new_tokens": 4, "num_samples": 4, "timeout_s": 240},
        "learner": {"engine": {"micro_batch_tokens": 512}},
        "cluster": {"address": "auto"},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe | changes))


def check_whole(found, steps):
    """One node less, and every prompt trained once."""
    assert found["nodes_before"] == [2]
    assert found["nodes_after"] == 1
    assert found["steps_done"] == steps
    assert (found["trained"], found["drawn"], found["failed"]) == (4 * steps, 4 * steps, 0)


def test_every_placement_puts_actors_where_it_says(tmp_path):
    found = run("placement", tmp_path)
    colocated, split, spread = (found[kind] for kind in ("colocated", "split", "spread"))
    for number in (0, 1):  # node and GPU of a rank are those of its worker
        assert colocated[f"learner-{number}"] == colocated[f"rollout-{number}"]
        assert len(colocated[f"learner-{number}"][1]) == 1
    assert colocated["learner-0"] != colocated["learner-1"]
    assert split["learner-0"][0] == split["rollout-0"][0]
    assert split["learner-0"][1] != split["rollout-0"][1]
    assert spread["rollout-0"][0] != spread["rollout-1"][0]


@pytest.mark.slow
def test_a_run_that_loses_a_node_ends_with_every_prompt_trained_once(tmp_path, small_model):
    write_recipe(tmp_path, small_model, steps=40)
    found = run("death", tmp_path)
    check_whole(found, steps=40)
    assert found["restarts"] >= 1


@pytest.mark.slow
def test_a_node_that_joins_is_used_and_one_that_leaves_costs_nothing_but_time(tmp_path, small_model):
    elastic = {"rollout": {"max_workers": 2, "num_samples": 4, "max_new_tokens": 2, "timeout_s": 240}}
    write_recipe(tmp_path, small_model, steps=100_000, **elastic)
    found = run("elastic", tmp_path)
    assert found["ready"] == [1, 2, 1, 2]
    assert found["status"] == STATUS
    assert found["joined"] == 1
    # A synchronous run: the newcomer has answered with the newest weights only.
    assert found["staleness"] == 0
    assert found["calls_of_the_second"] > 0
    assert (found["trained"], found["failed"]) == (4 * found["steps"], 0)
    assert found["num_trained"] == found["num_distinct"] == 16 * found["steps"]


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by one link, as two machines are by a cable; their names and addresses."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"unmask-{os.getpid()}-{letter}" for letter in "ab"]
    addresses = ["10.213.7.1", "10.213.7.2"]
    with ExitStack() as stack:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
                pytest.skip("network namespaces cannot be made here")
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
        link = ["ip", "-n", names[0], "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", names[1]]
        subprocess.run(link, check=True)
        for name, address in zip(names, addresses, strict=True):
            for words in (["addr", "add", f"{address}/24", "dev", LINK], ["link", "set", LINK, "up"]):
                subprocess.run(["ip", "-n", name, *words], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield names, addresses


@pytest.mark.slow
def test_a_run_goes_on_when_the_cable_to_a_node_is_pulled(tmp_path, small_model, two_hosts):
    names, addresses = two_hosts
    write_recipe(tmp_path, small_model, steps=20)
    env = environment() | {"RAY_ADDRESS": f"{addresses[0]}:6379"}
    own = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory", str(200 * 2**20)]
    head = ["--head", "--port", "6379", "--num-cpus", "3", "--include-dashboard", "false"]
    starts = [[*head, "--node-ip-address", addresses[0]]]
    starts.append(["--address", f"{addresses[0]}:6379", "--num-cpus", "1", "--node-ip-address", addresses[1]])
    with ExitStack() as stack:
        for number, (name, words) in enumerate(zip(names, starts, strict=True), start=1):
            command = ["ip", "netns", "exec", name, *ray, *words]
            log = stack.enter_context((tmp_path / f"{name}.log").open("w"))
            process = subprocess.Popen(command, env=own, stdout=log, stderr=log)
            stack.callback(process.wait, timeout=180)
            stack.callback(process.terminate)
            wait_for(number, f"{addresses[0]}:6379", names[0], env)
        found = run("vanish", tmp_path, prefix=["ip", "netns", "exec", names[0]], env=env)
    check_whole(found, steps=20)
    # A machine that vanished says nothing: its worker is late first, and lost only when Ray misses its heartbeats.
    assert found["restarts"] + found["reissued"] >= 1


def wait_for(num_nodes, address, namespace, env):
    """Returns once the cluster has so many nodes."""
    code = f"""
import time, ray
until = time.monotonic() + 300
while True:
    try:
        ray.is_initialized() or ray.init(address={address!r}, log_to_driver=False)
        assert sum(node["Alive"] for node in ray.nodes()) >= {num_nodes}
        break
    except Exception as error:
        assert time.monotonic() < until, error
        time.sleep(1)
"""
    subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", code],
        env=env,
        check=True,
        timeout=600,
        capture_output=True,
    )
