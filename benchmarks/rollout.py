"""`unmask bench rollout`: the engine against a plain decoder on the same weights, in one process.

Random weights of LLaDA's architecture: 4 layers of width 256, vocabulary 8192, float32. 8 prompts of 64 tokens, 64 new
tokens in 64 steps, blocks of 32, temperature 1. Both decode by low-confidence remasking (`lcr`), the plain decoder's
only rule; `confidence` is the engine's position-first rule, which reinforcement learning uses. No end token is ever
drawn, so all make exactly 64 steps. The laws of the two are compared on a model small enough to count answers.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch

import samplers
from benchmarks.plain_decoder import decode
from benchmarks.random_llada import random_llada
from benchmarks.timing import in_turn, machine
from rollout import Engine

PLAIN = "plain decoder (lcr)"


def law_distance(*, number: int, sampler: str = "lcr") -> tuple[float, float]:
    """Total variation between the answers of the two decoders on an enumerable model, and that of chance alone.

    `number` answers of each. The second number is the distance between two lots of the engine's own answers.
    """
    denoiser = random_llada(width=64, layers=1, vocabulary=6)
    prompt = [1, 2, 3]
    engine = Engine(denoiser, samplers.build(sampler), block_length=3, max_batch_tokens=2**20)
    answers = engine.generate([prompt], num_samples=2 * number, max_new_tokens=3, temperature=1.0, seed=1)
    ours = [tuple(answer.tokens.tolist()) for answer in answers]
    prompt_BP = torch.tensor([prompt]).expand(number, -1)
    plain = decode(denoiser, prompt_BP, max_new_tokens=3, steps=3, block_length=3, temperature=1.0, seed=2)
    theirs = [tuple(row) for row in plain.tolist()]
    return _total_variation(ours[:number], theirs), _total_variation(ours[:number], ours[number:])


def _total_variation(a: Sequence[tuple[int, ...]], b: Sequence[tuple[int, ...]]) -> float:
    count_a, count_b = Counter(a), Counter(b)
    keys = set(count_a) | set(count_b)
    return sum(abs(count_a[key] / len(a) - count_b[key] / len(b)) for key in keys) / 2


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="unmask bench rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--answers", type=int, default=6000, help="answers of each decoder to compare the laws by")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    denoiser = random_llada(width=256, layers=4, vocabulary=8192)
    prompt_BP = torch.randint(8000, (8, 64), generator=torch.Generator().manual_seed(0))
    prompts = prompt_BP.tolist()
    engines = {name: Engine(denoiser, samplers.build(name), block_length=32) for name in ("lcr", "confidence")}
    plain = partial(decode, denoiser, prompt_BP, max_new_tokens=64, block_length=32, temperature=1.0, seed=0)

    print(machine(), flush=True)
    print("batch 8, prompt 64, 64 new tokens, 64 steps, blocks of 32, T = 1, V = 8192, 4 layers of width 256, float32")
    plain(steps=2)
    for engine in engines.values():
        engine.generate(prompts, max_new_tokens=64, steps=2, temperature=1.0)
    runs = {
        f"engine ({name})": partial(engine.generate, prompts, max_new_tokens=64, temperature=1.0)
        for name, engine in engines.items()
    }
    timings = in_turn({**runs, PLAIN: partial(plain, steps=64)}, repetitions=options.repetitions)
    print(timings.table(PLAIN), flush=True)
    distance, chance = law_distance(number=options.answers)
    print(
        f"law of the answers: total variation {distance:.4f} between the decoders, {chance:.4f} between two lots of "
        f"one decoder ({options.answers} answers each)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
