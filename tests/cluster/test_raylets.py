"""Several raylets on one machine stand for several machines: where actors go, and what the loss of a machine does."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]


def run(what, folder, timeout_s=600):
    """What `tests.cluster.raylets` finds, in a process that knows nothing of this one's Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Protected by a token that nobody else has, and none is written into the home folder.
    kept |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, "-m", "tests.cluster.raylets", what, str(folder)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=kept, check=False, text=True, capture_output=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


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
    recipe = {
        "name": "nodes",
        "runs_dir": str(tmp_path / "runs"),
        "steps": 40,
        "prompts_per_step": 4,
        "model": {"path": str(small_model)},
        "tasks": [{"name": "arithmetic"}],
        "eval": {"limit": 4, "max_new_tokens": 2},
        "rollout": {"num_workers": 2, "max_new_tokens": 4, "num_samples": 4, "cpus_per_worker": 1, "timeout_s": 120},
        "learner": {"engine": {"micro_batch_tokens": 512}},
        "cluster": {"address": "auto"},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    found = run("death", tmp_path)
    assert found["nodes_before"] == [2]
    assert found["nodes_after"] == 1
    assert found["restarts"] >= 1
    assert found["steps_done"] == 40
    assert (found["trained"], found["drawn"], found["failed"]) == (160, 160, 0)
