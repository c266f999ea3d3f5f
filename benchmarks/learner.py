"""`unmask bench learner`: exact JustGRPO gradients, batched by a token budget, against one slot a pass; peak memory.

Random weights of LLaDA's architecture: 4 layers of width 256, vocabulary 8192, float32. Prompts of 32 tokens, answers
of 32, drawn left to right. The gradient of an answer needs one canvas a slot (everything from the slot on masked):

    policy_update      canvases in micro-batches of a token budget, vocabulary head at the scored slots (the learner)
    one slot a pass    one canvas, vocabulary head at its one slot, backward; next
    the same, whole head   as released code does it: logits at every position of the canvas, of which one is used

The gradients are compared, and the peak memory of an update is measured in a fresh process for each budget. Between
the two, the block-causal layout is compared with whole canvases (`benchmarks.learner_shared`); `--floor` measures how
much of the machine's matrix products the learner uses (`benchmarks.learner_floor`).

N canvas tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import models
from benchmarks.learner_estimators import print_estimators
from benchmarks.learner_floor import print_floor
from benchmarks.learner_shared import print_shared
from benchmarks.models import random_llada
from benchmarks.sink import learner_gradient
from benchmarks.timing import in_turn, machine
from learner import Sample
from rollout.records import Trajectory

PROMPT, ANSWER = 32, 32
ONE_SLOT = "one slot a pass"
WHOLE_HEAD = "one slot a pass, whole head"
TOLERANCE = 1e-5
PROC = Path("/proc/self")


def left_to_right_samples(number: int) -> list[Sample]:
    """Random answers in the form in which the `ar` sampler records them, advantages 1 and -1."""
    generator = np.random.default_rng(0)
    return [
        Sample(
            Trajectory(
                tokens=generator.integers(0, 8000, ANSWER),
                step_map=np.arange(ANSWER, dtype=np.int32),
                logprobs=np.full(ANSWER, -9.0, dtype=np.float32),
                entropies=np.full(ANSWER, 9.0, dtype=np.float32),
                num_steps=ANSWER,
                num_forwards=ANSWER,
                finish_reason="length",
                answer_length=ANSWER,
                seed=index,
                sampler="ar",
                exact_likelihood=True,
                temperature=1.0,
                top_p=1.0,
                block_length=ANSWER,
                prompt_tokens=generator.integers(0, 8000, PROMPT),
            ),
            advantage=1.0 if index % 2 else -1.0,
        )
        for index in range(number)
    ]


def plain_gradient(denoiser: models.Denoiser, samples: Sequence[Sample], *, whole_head: bool) -> None:
    """The same gradient by a loop over slots, written from the formula: - sum A / (samples * T) grad log p."""
    row_1 = torch.zeros(1, dtype=torch.int64)
    for sample in samples:
        prompt, answer = sample.trajectory.prompt_tokens, sample.trajectory.tokens
        for slot in range(len(answer)):
            canvas_1N = torch.tensor([[*prompt, *answer[:slot], *[denoiser.mask_token_id] * (len(answer) - slot)]])
            position = len(prompt) + slot
            if whole_head:
                logits_V = denoiser.logits(canvas_1N)[0, position]
            else:
                hidden_1ND = denoiser.hidden(canvas_1N)
                logits_V = denoiser.head(denoiser.aligned(hidden_1ND, row_1, row_1 + position))[0]
            logits_V = logits_V.index_fill(0, torch.tensor(denoiser.mask_token_id), -torch.inf)
            logprob = logits_V.log_softmax(0)[int(answer[slot])]
            (-sample.advantage * logprob / (len(samples) * len(answer))).backward()


def fresh(denoiser: models.Denoiser, add_gradient: Callable[[], None]) -> list[torch.Tensor]:
    """Gradient of every weight, from zero."""
    for parameter in denoiser.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add_gradient()
    return [parameter.grad for parameter in denoiser.parameters() if parameter.grad is not None]


def compare(options: argparse.Namespace) -> float:
    """Print timings; return the largest difference between gradients."""
    denoiser = random_llada(width=256, layers=4, vocabulary=8192)
    samples = left_to_right_samples(options.samples)
    budget = options.micro_batch_tokens
    ours_name = f"policy_update, budget {budget} tokens"
    runs = {
        ours_name: partial(learner_gradient, denoiser, samples, micro_batch_tokens=budget),
        ONE_SLOT: partial(plain_gradient, denoiser, samples, whole_head=False),
        WHOLE_HEAD: partial(plain_gradient, denoiser, samples, whole_head=True),
    }
    print(
        f"{options.samples} answers of {ANSWER} tokens, prompts of {PROMPT}, V = 8192, 4 layers of width 256, float32"
    )
    for whole_head in (False, True):
        plain_gradient(denoiser, left_to_right_samples(1), whole_head=whole_head)
    ours, *others = (fresh(denoiser, run) for run in runs.values())
    timings = in_turn(
        {name: partial(fresh, denoiser, run) for name, run in runs.items()}, repetitions=options.repetitions
    )
    print(timings.table(WHOLE_HEAD), flush=True)
    print(f"{timings.ratio(ours_name, ONE_SLOT):.2f} times the speed of one slot a pass, head at that slot only")
    gap = max(float((a - b).abs().max()) for other in others for a, b in zip(ours, other, strict=True))
    largest = max(float(gradient.abs().max()) for gradient in ours)
    print(f"gradients: largest difference {gap:.1e}, largest entry {largest:.1e}\n", flush=True)
    return gap


# ---- peak memory


def measure(budget: int, number: int) -> None:
    """Print the peak memory of one update above that of model and gradients, in MiB; for a process of its own."""
    torch.set_num_threads(1)
    denoiser = random_llada(width=256, layers=4, vocabulary=8192)
    fresh(denoiser, lambda: learner_gradient(denoiser, left_to_right_samples(1), micro_batch_tokens=1))
    samples = left_to_right_samples(number)
    (PROC / "clear_refs").write_text("5")  # forget the peak so far
    before = _resident_kib("VmRSS")
    learner_gradient(denoiser, samples, micro_batch_tokens=budget)
    print(json.dumps((_resident_kib("VmHWM") - before) / 1024))


def _resident_kib(name: str) -> int:
    """A line of this process's status. `ru_maxrss` will not do: a child starts with its parent's."""
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_mib(budget: int, number: int) -> float:
    """`measure` in a fresh process, whose allocator hands large blocks back at once."""
    command = [sys.executable, "-m", "benchmarks.learner", "--measure", str(budget), str(number)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory_table(budgets: Sequence[int], numbers: Sequence[int]) -> None:
    """Print peak memory by budget and number of answers."""
    canvas = PROMPT + ANSWER
    print("peak memory of an update above model and gradients, MiB")
    print(f"| token budget (canvases of {canvas}) | " + " | ".join(f"{n} answers" for n in numbers) + " |")
    print("|---" * (len(numbers) + 1) + "|")
    for budget in budgets:
        peaks = [peak_mib(budget, number) for number in numbers]
        print(f"| {budget} ({budget // canvas}) | " + " | ".join(f"{peak:.0f}" for peak in peaks) + " |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if the gradients differ."""
    parser = argparse.ArgumentParser(
        prog="unmask bench learner", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--samples", type=int, default=4, help="answers in the timed update")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="token budget of the timed update")
    parser.add_argument("--budgets", type=int, nargs="*", default=[1024, 4096, 16384], help="budgets to measure")
    parser.add_argument("--floor", action="store_true", help="only the fraction of the floor, 2 minutes on one core")
    parser.add_argument(
        "--estimators", action="store_true", help="only the estimators against one slot a pass, --samples answers"
    )
    parser.add_argument("--measure", type=int, nargs=2, metavar=("BUDGET", "ANSWERS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        measure(*options.measure)
        return 0
    torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    if options.floor:
        print_floor(answers=1, budget=options.micro_batch_tokens, repetitions=options.repetitions)
        return 0
    if options.estimators:
        found = print_estimators(
            answers=options.samples, budget=options.micro_batch_tokens, repetitions=options.repetitions
        )
        return int(found > TOLERANCE)
    gap = max(compare(options), print_shared(repetitions=options.repetitions))
    if (PROC / "clear_refs").exists():
        memory_table(options.budgets, numbers=(8, 16))
    else:
        print("peak memory is measured on Linux only (/proc/self/clear_refs)")
    return int(gap > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
