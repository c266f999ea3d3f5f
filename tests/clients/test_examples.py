"""The examples as a user runs them, against the real service."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import learner
import models
import rollout
import samplers

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command, **variables):
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rollouts_for_a_trainer_hold_all_that_an_update_needs(tiny_service, tmp_path):
    out = tmp_path / "groups.jsonl"
    run(sys.executable, EXAMPLES / "rollouts_for_a_trainer.py", "--url", tiny_service, "--num-samples", 4, "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 16
    for start in range(0, 16, 4):
        group = rows[start : start + 4]
        assert len({row["prompt_id"] for row in group}) == 1
        assert sum(row["advantage"] for row in group) == pytest.approx(0)
    # The log-probabilities are those of a replay of the step map under the same weights.
    denoiser = models.load("tiny")
    engine = rollout.Engine(denoiser, samplers.build("confidence"))
    for row in rows[:2]:
        prompt = models.encode_prompt(denoiser, row["prompt_id"])
        (like,) = engine.generate([prompt], max_new_tokens=8, temperature=1.0)
        record = rollout.Trajectory(
            **{name: getattr(like, name) for name in type(like).__dataclass_fields__}
            | {
                "tokens": np.asarray(row["tokens"]),
                "step_map": np.asarray(row["step_map"], dtype=np.int32),
                "num_steps": row["num_steps"],
                "answer_length": row["answer_length"],
            }
        )
        (replayed,) = learner.sequence_logprobs(denoiser, [prompt], [record], temperature=1.0)
        assert replayed.tolist() == pytest.approx(row["old_logprobs"], abs=1e-4)


def test_trainer_example_refuses_a_sampler_without_exact_likelihood(tiny_service):
    command = [sys.executable, EXAMPLES / "rollouts_for_a_trainer.py", "--url", tiny_service, "--sampler", "lcr"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "lcr has no exact likelihood" in done.stderr


def test_openai_example_prints_three_answers(tiny_service):
    pytest.importorskip("openai")
    printed = run(sys.executable, EXAMPLES / "openai_client.py", "--url", tiny_service)
    assert [line.split(":")[0] for line in printed.splitlines()] == ["completion", "chat", "stream"]
    chat, stream = (line.split(": ", 1)[1] for line in printed.splitlines()[1:])
    assert len(chat) == 16
    assert len(stream.replace("|", "")) == 16


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_example_asks_every_endpoint(tiny_service):
    printed = run("bash", EXAMPLES / "curl.sh", tiny_service)
    sections = [
        line for line in printed.splitlines() if line.startswith("# ") and "HELP" not in line and "TYPE" not in line
    ]
    assert len(sections) == 6
    assert '"object":"list"' in printed
    assert "event: step" in printed
    assert "data: [DONE]" in printed
    assert '"infills"' in printed
