"""What the estimators cost against one slot a pass: `unmask bench learner --estimators`.

Width 256, 4 layers, vocabulary 8192, float32; prompts of 41 tokens, 64 slots, answers drawn left to right. The loop
takes one canvas at a time and computes the logits of all of it, of which one position is used. Times are of the
processor, the ways taken in turn. Two sets of answers: all of full length, and log-normal lengths that average half
the canvas; there the loop is timed over all 64 slots (released code gives slots after the end a weight of 0, and
computes them) and over the scored ones. Gradients of `ar_exact` and of the loop over scored slots are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import models
from benchmarks.models import random_llada
from benchmarks.sink import GradientSink
from benchmarks.timing import in_turn
from learner import BatchStats, Sample, policy_update
from learner.config import ObjectiveConfig
from rollout.records import Trajectory

PROMPT, SLOTS, VOCABULARY = 41, 64, 8192
LOOP = "one slot a pass, whole head"
ESTIMATORS: Mapping[str, Mapping[str, object]] = {
    "ar_exact": {"likelihood": "ar_exact"},
    "ar_fast": {"likelihood": "ar_fast"},
    "trace_merged, 8 steps": {"likelihood": "trace_merged", "estimator": {"merged_steps": 8}},
    "one_step": {"likelihood": "one_step"},
}


def samples_of(lengths: Sequence[int]) -> list[Sample]:
    """Random answers of given lengths, the end token the last scored one where there is room."""
    generator = np.random.default_rng(0)
    samples = []
    for index, length in enumerate(lengths):
        tokens = generator.integers(2, VOCABULARY - 2, SLOTS)
        tokens[length:] = 0
        num_steps = min(length + 1, SLOTS)
        answer = Trajectory(
            tokens=tokens,
            step_map=np.minimum(np.arange(SLOTS), num_steps).astype(np.int32),
            logprobs=np.full(SLOTS, -9.0, dtype=np.float32),
            entropies=generator.random(SLOTS).astype(np.float32),
            num_steps=num_steps,
            num_forwards=num_steps,
            finish_reason="eos" if length < SLOTS else "length",
            answer_length=length,
            seed=index,
            sampler="ar",
            exact_likelihood=True,
            temperature=1.0,
            top_p=1.0,
            block_length=SLOTS,
            prompt_tokens=generator.integers(2, VOCABULARY - 2, PROMPT),
        )
        samples.append(Sample(answer, advantage=1.0 if index % 2 else -1.0))
    return samples


def log_normal_lengths(number: int) -> list[int]:
    """Lengths at even quantiles of a log-normal law (sigma 0.6), cut at the canvas, scaled to average half of it."""
    place = (np.arange(number) + 0.5) / number
    normal = torch.special.ndtri(torch.from_numpy(place)).numpy()
    scale = SLOTS / 2
    for _ in range(30):
        length = np.clip(np.round(scale * np.exp(0.6 * normal)), 1, SLOTS)
        scale *= SLOTS / 2 / length.mean()
    return [int(value) for value in length]


def loop_gradient(denoiser: models.Denoiser, samples: Sequence[Sample], *, every_slot: bool) -> None:
    """- A / (samples * T') * grad log p, one slot a pass; slots after the end have weight 0, computed if asked."""
    for sample in samples:
        answer = sample.trajectory
        prompt, tokens, num_scored = answer.prompt_tokens, answer.tokens, int(answer.scored.sum())
        for slot in range(SLOTS if every_slot else num_scored):
            canvas_1N = torch.tensor([[*prompt, *tokens[:slot], *[denoiser.mask_token_id] * (SLOTS - slot)]])
            logits_V = denoiser.logits(canvas_1N)[0, PROMPT + slot]
            logits_V = logits_V.index_fill(0, torch.tensor(denoiser.mask_token_id), -torch.inf)
            weight = sample.advantage / (len(samples) * num_scored) if slot < num_scored else 0.0
            (-weight * logits_V.log_softmax(0)[int(tokens[slot])]).backward()


def learner_gradient(
    denoiser: models.Denoiser, samples: Sequence[Sample], settings: Mapping[str, object], budget: int
) -> None:
    """The same by the learner's own update."""
    objective = ObjectiveConfig.model_validate(settings)
    policy_update(GradientSink(denoiser), samples, BatchStats.of(samples), objective, micro_batch_tokens=budget)


def print_estimators(*, answers: int, budget: int, repetitions: int) -> float:
    """Print both tables; returns the largest difference of a gradient from the loop's."""
    denoiser = random_llada(width=256, layers=4, vocabulary=VOCABULARY)
    gaps = []
    for name, lengths in (("full length", [SLOTS] * answers), ("log-normal", log_normal_lengths(answers))):
        samples = samples_of(lengths)
        runs: dict[str, Callable[[], object]] = {
            label: partial(learner_gradient, denoiser, samples, settings, budget)
            for label, settings in ESTIMATORS.items()
        }
        if min(lengths) < SLOTS:
            runs["one slot a pass, scored slots only"] = partial(loop_gradient, denoiser, samples, every_slot=False)
        runs[LOOP] = partial(loop_gradient, denoiser, samples, every_slot=True)
        learner_gradient(denoiser, samples[:1], ESTIMATORS["one_step"], budget)
        timings = in_turn(runs, repetitions=repetitions, clock=time.process_time)
        print(f"{name}: {answers} answers of {np.mean(lengths):.0f} slots, prompt {PROMPT}, {SLOTS} slots")
        print(timings.table(LOOP), flush=True)
        gaps.append(_gap(denoiser, samples[:1], budget))
        print(f"gradients of one answer differ by {gaps[-1]:.1e} of the largest entry\n", flush=True)
    return max(gaps)


def _gap(denoiser: models.Denoiser, samples: Sequence[Sample], budget: int) -> float:
    found = []
    for add in (
        partial(learner_gradient, denoiser, samples, ESTIMATORS["ar_exact"], budget),
        partial(loop_gradient, denoiser, [replace(s) for s in samples], every_slot=False),
    ):
        denoiser.zero_grad()
        add()
        found.append([p.grad.clone() for p in denoiser.parameters() if p.grad is not None])
    largest = max(float(gradient.abs().max()) for gradient in found[1])
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) / largest
