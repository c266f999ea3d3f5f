"""Block-causal gradients over shared clean tokens against the same canvases computed whole.

SDAR's architecture, width 256, 6 layers, blocks of 4, float32 (`benchmarks.models.tiny_block_causal`). A group of four
answers of 32 tokens to one prompt of 64; in each block the tokens were committed in random order, one a step, so an
answer has 32 canvases. Whole, a canvas is the prompt and the answer up to its block; shared, it is one block over keys
that prompt and answer have computed once (`learner.plan.Share`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import models
from benchmarks.models import tiny_block_causal
from benchmarks.timing import in_turn
from learner.likelihood import score
from learner.plan import CanvasPlan, micro_batches, num_computed, plan_canvases
from learner.replay import trace_exact
from rollout.records import Trajectory

ANSWERS, PROMPT, SLOTS, BLOCK, BUDGET = 4, 64, 32, 4, 4096
SHARED, WHOLE = "shared clean tokens", "whole canvases"


def group_of_answers(number: int, *, prompt: int, slots: int) -> list[Trajectory]:
    """Random answers to one random prompt, committed block by block, at random inside a block."""
    generator = np.random.default_rng(0)
    prompt_tokens = generator.integers(0, 4000, prompt)
    blocks = (np.arange(slots) + prompt) // BLOCK
    return [
        Trajectory(
            tokens=generator.integers(0, 4000, slots),
            step_map=np.lexsort((generator.random(slots), blocks)).argsort().astype(np.int32),
            logprobs=np.full(slots, -9.0, dtype=np.float32),
            entropies=np.full(slots, 9.0, dtype=np.float32),
            num_steps=slots,
            num_forwards=slots,
            finish_reason="length",
            answer_length=slots,
            seed=index,
            sampler="random",
            exact_likelihood=True,
            temperature=1.0,
            top_p=1.0,
            block_length=BLOCK,
            prompt_tokens=prompt_tokens,
        )
        for index in range(number)
    ]


def both_plans(denoiser: models.Denoiser, answers: list[Trajectory]) -> dict[str, CanvasPlan]:
    """The learner's plan, and the same canvases each for itself."""
    wanted = [answer.committed for answer in answers]
    plan = plan_canvases(answers, wanted, estimator=trace_exact, family=denoiser.family)
    return {SHARED: plan, WHOLE: replace(plan, share_C=[None] * len(plan.canvases))}


def gradient(denoiser: models.Denoiser, plan: CanvasPlan, *, budget: int) -> list[torch.Tensor]:
    """Of the sum of all log-probabilities, by every weight."""
    denoiser.zero_grad()
    for group in micro_batches(plan, budget):
        (-score(denoiser, plan, group, temperature=1.0).logprob_M.sum()).backward()
    return [parameter.grad.clone() for parameter in denoiser.parameters() if parameter.grad is not None]


def largest_gap(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference of a weight's gradient, over the largest entry of that gradient."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def print_shared(*, repetitions: int) -> float:
    """Print times and tokens; returns the difference between the gradients."""
    denoiser = tiny_block_causal().requires_grad_(True)
    plans = both_plans(denoiser, group_of_answers(ANSWERS, prompt=PROMPT, slots=SLOTS))
    tokens = {name: sum(num_computed(p, g) for g in micro_batches(p, BUDGET)) for name, p in plans.items()}
    gap = largest_gap(*(gradient(denoiser, plan, budget=BUDGET) for plan in plans.values()))
    runs = {name: partial(gradient, denoiser, plan, budget=BUDGET) for name, plan in plans.items()}
    timings = in_turn(runs, repetitions=repetitions, clock=time.process_time)
    print(f"block-causal, {ANSWERS} answers of {SLOTS} tokens to one prompt of {PROMPT}, blocks of {BLOCK}")
    print(timings.table(WHOLE))
    print(
        f"tokens computed: {tokens[SHARED]} and {tokens[WHOLE]}; gradients differ by {gap:.1e} of their largest entry\n"
    )
    return gap
