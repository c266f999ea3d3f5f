"""The script for a GPU machine, end to end in tiny on the CPU, without the packages that such a machine may lack."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.adapters import adapt
from benchmarks.finding import Lengths, prompts
from benchmarks.gpu import Row
from benchmarks.gpu_sizes import random_answers
from benchmarks.models import llada_config, on_device

ABSENT = ("ray", "deepspeed", "pydantic", "peft", "datasets", "mlflow", "typer", "rich")
PROGRAM = """
import sys
for name in {absent}:
    sys.modules[name] = None  # importing it fails
from benchmarks.gpu import main
sys.exit(main(["--shape", "tiny", "--device", "cpu", "--tokens-per-forward", "4"]))
"""


def test_it_runs_with_torch_and_transformers_alone():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(absent=ABSENT)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| LLaDA", "| SDAR"))]
    # exact, dual, block and the learner
    assert len(rows) == 4
    assert all("%" in row for row in rows)


def test_a_row_tells_speed_and_shares():
    # 200 tokens in 4 s, two from each forward; 25 operations a second where products make 50 and the limit is 100
    row = Row("what", tokens=200, tokens_per_forward=2.0, seconds=4.0, flops=100, peak=50.0, limit=100.0)
    assert str(row) == "| what | 2 | 50 | 25 | 50% | 25% |"


def test_fresh_adapters_change_nothing_and_are_all_that_learns():
    denoiser = on_device(llada_config(width=16, layers=2, heads=1, ffn=24, vocabulary=32))
    canvas_BN = prompts(1, 6, vocabulary=30)
    before = denoiser.logits(canvas_BN)
    trained = adapt(denoiser, rank=2)
    # 7 linear layers in each of 2 layers, two thin matrices each
    assert len(trained) == 28
    after = denoiser.logits(canvas_BN)
    assert torch.equal(before, after)
    after.sum().backward()
    assert all(parameter.requires_grad == (parameter.grad is not None) for parameter in denoiser.parameters())
    assert sum(parameter.requires_grad for parameter in denoiser.parameters()) == 28


def test_random_answers_are_committed_evenly_over_the_steps():
    answer = random_answers(1, Lengths(prompt=3, answer=8, block=4))[0]
    assert sorted(answer.step_map.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
