"""What `unmask bench gpu` runs: published shapes, and tiny ones that show the code at work anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.finding import Lengths
from benchmarks.models import llada_config, sdar_config
from rollout import Trajectory

TRAINED_STEPS = 4
"""Denoising steps, and so canvases, of an answer that the learner scores."""


@dataclass(frozen=True)
class Sizes:
    """Models and lengths of a shape."""

    llada: dict[str, Any]
    llada_lengths: Lengths
    llada_batch: int
    sdar: dict[str, Any]
    sdar_lengths: Lengths
    sdar_prompts: int
    sdar_samples: int
    """Answers of each prompt."""
    trained: int
    """Answers in a training step."""


SHAPES = {
    "8b": Sizes(
        llada=llada_config(width=4096, layers=32, heads=32, ffn=12288, vocabulary=126464),
        llada_lengths=Lengths(prompt=128, answer=256, block=32),
        llada_batch=8,
        sdar=sdar_config(width=4096, layers=36, heads=32, kv_heads=8, ffn=12288, vocabulary=151936),
        sdar_lengths=Lengths(prompt=256, answer=1024, block=4),
        sdar_prompts=8,
        sdar_samples=16,
        trained=4,
    ),
    "tiny": Sizes(
        llada=llada_config(width=64, layers=2, heads=2, ffn=128, vocabulary=512),
        llada_lengths=Lengths(prompt=16, answer=16, block=8),
        llada_batch=2,
        sdar=sdar_config(width=64, layers=2, heads=4, kv_heads=2, ffn=128, vocabulary=512),
        sdar_lengths=Lengths(prompt=16, answer=16, block=4),
        sdar_prompts=2,
        sdar_samples=2,
        trained=2,
    ),
}


def random_answers(number: int, lengths: Lengths) -> list[Trajectory]:
    """Answers whose slots were committed in `TRAINED_STEPS` steps, in random order."""
    generator = np.random.default_rng(0)
    return [_random_answer(lengths, generator) for _ in range(number)]


def _random_answer(lengths: Lengths, generator: np.random.Generator) -> Trajectory:
    answer = lengths.answer
    return Trajectory(
        tokens=generator.integers(0, 500, answer),
        step_map=generator.permutation(np.arange(answer) % TRAINED_STEPS).astype(np.int32),
        logprobs=np.zeros(answer, dtype=np.float32),
        entropies=np.zeros(answer, dtype=np.float32),
        num_steps=TRAINED_STEPS,
        num_forwards=TRAINED_STEPS,
        finish_reason="length",
        answer_length=answer,
        seed=0,
        sampler="random",
        exact_likelihood=True,
        temperature=1.0,
        top_p=1.0,
        block_length=answer,
        prompt_tokens=generator.integers(0, 500, lengths.prompt),
    )
