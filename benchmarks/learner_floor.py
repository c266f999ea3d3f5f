"""How much of the machine's matrix products an exact left-to-right gradient uses: the learner against its floor.

The model of about 100 million weights in bfloat16 (`benchmarks.models.hundred_million`), prompts of 128 tokens, 128
slots, answers that end after 16: each of these 16 slots takes a canvas of 256 tokens, everything from it on masked. The
learner's own update computes them in micro-batches of a token budget.

The floor is the needed arithmetic over the speed of `torch.matmul` at the model's shapes in the same process. Needed is
a forward (every layer at every token; the last one's queries, output and feed-forward, and the head, at the scored
slots) and twice that backward. Norms, softmax, rotary embedding, and anything computed again count as nothing needed.
Times are of the processor, so that other processes falsify them less.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

import models
from benchmarks.floor import Forward, Products, Shape, floor_ratios, needed_flops
from benchmarks.models import hundred_million
from benchmarks.sink import learner_gradient, no_gradient
from benchmarks.timing import in_turn
from learner import Sample
from rollout.records import Trajectory

PROMPT, SLOTS, SCORED = 128, 128, 16
FORWARD, GRADIENT, PRODUCTS = "forward alone", "forward and backward", "matrix products"


def ended_samples(number: int, *, vocabulary: int, eos_token_id: int) -> list[Sample]:
    """Left-to-right answers of random tokens whose last scored slot is the end token."""
    generator = np.random.default_rng(0)
    samples = []
    for index in range(number):
        tokens = np.full(SLOTS, eos_token_id)
        tokens[: SCORED - 1] = generator.integers(0, vocabulary - 2, SCORED - 1)
        answer = Trajectory(
            tokens=tokens,
            step_map=np.minimum(np.arange(SLOTS), SCORED).astype(np.int32),
            logprobs=np.full(SLOTS, -9.0, dtype=np.float32),
            entropies=np.full(SLOTS, 9.0, dtype=np.float32),
            num_steps=SCORED,
            num_forwards=SCORED,
            finish_reason="eos",
            answer_length=SCORED - 1,
            seed=index,
            sampler="ar",
            exact_likelihood=True,
            temperature=1.0,
            top_p=1.0,
            block_length=SLOTS,
            prompt_tokens=generator.integers(0, vocabulary - 2, PROMPT),
        )
        samples.append(Sample(answer, advantage=1.0 if index % 2 else -1.0))
    return samples


def canvas_forwards(samples: Sequence[Sample]) -> list[Forward]:
    """One a canvas."""
    canvas = PROMPT + SLOTS
    return [Forward(canvas, canvas, 1) for sample in samples for _ in range(int(sample.trajectory.scored.sum()))]


def print_floor(*, answers: int, budget: int, repetitions: int, denoiser: models.Denoiser | None = None) -> float:
    """Print times and fractions of the floor; returns that of the gradient, the median over the rounds."""
    denoiser = (denoiser or hundred_million()).requires_grad_(True)
    samples = ended_samples(answers, vocabulary=denoiser.vocab_size, eos_token_id=denoiser.eos_token_id)
    products = Products.of(denoiser, budget, seconds=1.0)
    for parameter in denoiser.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradient = partial(learner_gradient, denoiser, samples, micro_batch_tokens=budget)
    learner_gradient(denoiser, samples[:1], micro_batch_tokens=budget)
    runs = {
        PRODUCTS: products.run,
        FORWARD: partial(no_gradient, denoiser, samples, micro_batch_tokens=budget),
        GRADIENT: gradient,
    }
    timings = in_turn(runs, repetitions=repetitions, clock=time.process_time).seconds
    flops = needed_flops(Shape.of(denoiser), canvas_forwards(samples))
    fractions = {}
    print(
        f"{answers} answers of {SCORED} scored slots, canvases of {PROMPT + SLOTS} tokens, {budget} a micro-batch, "
        f"{str(denoiser.backbone.lm_head.weight.dtype).removeprefix('torch.')}, load {os.getloadavg()[0]:.1f}"
    )
    speeds = [products.flops / 1e9 / seconds for seconds in timings[PRODUCTS]]
    print(f"matrix products at the model's shapes: {min(speeds):.0f} to {max(speeds):.0f} GFLOP/s")
    print("| what | needed GFLOP | processor seconds, least | fraction of the floor, median (range) |")
    print("|---|---|---|---|")
    for name, needed in ((FORWARD, flops), (GRADIENT, 3 * flops)):
        ratios = floor_ratios(needed, products, timings[PRODUCTS], timings[name])
        found = sorted(1 / ratio for ratio in ratios)
        fractions[name] = found[len(found) // 2]
        spread = f"{fractions[name]:.2f} ({found[0]:.2f} to {found[-1]:.2f})"
        print(f"| {name} | {needed / 1e9:.0f} | {min(timings[name]):.2f} | {spread} |", flush=True)
    return fractions[GRADIENT]
