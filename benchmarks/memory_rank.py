"""One rank of `benchmarks.memory`: `python -m benchmarks.memory_rank RECIPE_AS_JSON PORT RANK` prints its peak."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from cluster.config import SftRecipe
from learner.masking import random_canvases
from learner.sft import MaskedExample, make_example
from learner.sft_config import RandomMasking
from learner.worker import LearnerRank

NUM_UPDATES = 3
LENGTH = 128
"""Positions of an example; half of them are response slots."""


def examples(micro_batch_tokens: int, num_micro_batches: int) -> list[MaskedExample]:
    """Examples that fill so many micro-batches to the brim."""
    random = np.random.default_rng(0)
    plain = [
        make_example(
            random.integers(3, 90, LENGTH // 2).tolist(),
            random.integers(3, 90, LENGTH // 2).tolist(),
            max_new_tokens=LENGTH // 2,
            eos_token_id=0,
        )
        for _ in range(num_micro_batches * micro_batch_tokens // LENGTH)
    ]
    return random_canvases(plain, RandomMasking(t_min=0.5), seed=0, step=0)


def peak_bytes() -> int:
    """Peak of this process's resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Make the updates; the last line is a JSON object."""
    recipe, port, rank = SftRecipe.model_validate_json(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    engine = recipe.learner.engine
    worker = LearnerRank(
        recipe.model, recipe.learner, rank=rank, world_size=engine.num_ranks, total_steps=NUM_UPDATES, seed=0
    )
    worker.start("127.0.0.1", port)
    loaded = peak_bytes()
    masked = examples(engine.micro_batch_tokens, 2)
    for _ in range(NUM_UPDATES):
        worker.sft_step(masked, len(masked) * engine.num_ranks)
    sys.stdout.write(json.dumps({"loaded": loaded, "peak": peak_bytes()}) + "\n")


if __name__ == "__main__":
    main()
