"""`unmask bench estimators`: cost, bias and variance of every likelihood estimator on the built-in model.

Answers to 4x4 Sudoku, drawn one token a step by confidence (from left to right for `ar_exact` and `ar_fast`), half of
them with advantage 1 and half with -1. The gradient of the policy loss by every estimator, for several draws of its
masks, is compared with the exact one of the same answers (`trace_exact`, `ar_exact`):

    canvases    with gradients, an answer; what an update costs is three times that, in forwards
    cosine      of one draw with the exact gradient, mean over draws
    of mean     cosine of the mean over draws: what is left of the angle is bias, up to the variance of that mean
    length      of the mean over draws, in lengths of the exact gradient
    noise       standard deviation over draws (root of the summed variances), in lengths of the exact gradient

Symbols: R draws, W weights of the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import models
import reward
import rollout
import samplers
from benchmarks.sink import GradientSink
from benchmarks.timing import machine
from learner import BatchStats, Sample, policy_update
from learner.config import ObjectiveConfig
from learner.objective_config import LIKELIHOODS

MAX_NEW_TOKENS = 18
SETTINGS: dict[str, dict[str, Any]] = {
    "trace_merged": {"estimator": {"merged_steps": 2}},
    "trace_merged, 8 steps": {"estimator": {"merged_steps": 8}},
    "trace_sampled": {"estimator": {"num_draws": 4}},
    "trace_sampled, by entropy": {"estimator": {"num_draws": 4, "step_law": "entropy"}},
    "agdo": {"agdo": {"num_canvases": 8}, "normaliser": "canvas"},
}
"""Where not the defaults, by row."""


def draw_answers(denoiser: models.Denoiser, sampler: str, number: int) -> list[Sample]:
    """Answers at temperature 1 to as many prompts."""
    task = reward.task("sudoku4")
    prompts = [task.prompt(row) for row in task.rows("train")[:number]]
    tokens = [models.encode_prompt(denoiser, prompt.text, prompt.messages) for prompt in prompts]
    engine = rollout.Engine(denoiser, samplers.build(sampler))
    found = engine.generate(tokens, num_samples=1, max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=0)
    return [Sample(answer, 1.0 if i % 2 else -1.0) for i, answer in enumerate(found)]


def gradient(
    denoiser: models.Denoiser, samples: Sequence[Sample], objective: ObjectiveConfig
) -> tuple[torch.Tensor, float]:
    """Gradient by all weights (W,), and canvases an answer."""
    denoiser.zero_grad()
    stats = BatchStats.of(samples)
    metrics = policy_update(GradientSink(denoiser), samples, stats, objective, micro_batch_tokens=4096)
    parts = [p.grad.flatten() for p in denoiser.parameters() if p.grad is not None]
    return torch.cat(parts).clone(), metrics["num_canvases"] / len(samples)


def redrawn(samples: Sequence[Sample], draw: int) -> list[Sample]:
    """The same answers with another seed, from which masks are drawn."""
    return [
        replace(sample, trajectory=replace(sample.trajectory, seed=sample.trajectory.seed + 7919 * draw))
        for sample in samples
    ]


def row(
    denoiser: models.Denoiser, samples: Sequence[Sample], objective: ObjectiveConfig, exact_W: torch.Tensor, draws: int
) -> tuple[float, ...]:
    """The numbers of one estimator."""
    size = float(exact_W.norm())
    cosines, mean_W, square = [], torch.zeros_like(exact_W), 0.0
    num_canvases = 0.0
    for draw in range(draws):
        found_W, num_canvases = gradient(denoiser, redrawn(samples, draw), objective)
        cosines.append(float(torch.cosine_similarity(found_W, exact_W, dim=0)))
        mean_W += found_W / draws
        square += float(found_W.double().square().sum()) / draws
    variance = max(square - float(mean_W.double().square().sum()), 0.0) * draws / max(draws - 1, 1)
    of_mean = float(torch.cosine_similarity(mean_W, exact_W, dim=0))
    return num_canvases, sum(cosines) / draws, of_mean, float(mean_W.norm()) / size, variance**0.5 / size


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="unmask bench estimators", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    denoiser = models.load("tiny")
    by_order = {name: draw_answers(denoiser, name, options.answers) for name in ("confidence", "ar")}
    exact_of = {}
    print(f"{options.answers} answers, {options.draws} draws")
    print("| estimator | canvases | cosine | of mean | length | noise |")
    print("|---|---|---|---|---|---|")
    names = [*SETTINGS, *(name for name in LIKELIHOODS if name not in SETTINGS)]
    for name in sorted(names, key=lambda n: list(LIKELIHOODS).index(n.split(",")[0])):
        likelihood = name.split(",")[0]
        order = "ar" if likelihood in ("ar_exact", "ar_fast") else "confidence"
        samples = by_order[order]
        if order not in exact_of:
            exact_of[order], _ = gradient(denoiser, samples, ObjectiveConfig())
        objective = ObjectiveConfig.model_validate({"likelihood": likelihood, **SETTINGS.get(name, {})})
        draws = options.draws if LIKELIHOODS[likelihood].is_random else 1
        numbers = row(denoiser, samples, objective, exact_of[order], draws)
        noise = f"{numbers[4]:.2f}" if draws > 1 else "-"
        print(
            f"| `{name}` | {numbers[0]:.1f} | {numbers[1]:.3f} | {numbers[2]:.3f} | {numbers[3]:.2f} | {noise} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
