"""`unmask bench samplers`: what each sampler costs beside the model, and against plain confidence.

Random weights, LLaDA's architecture: width 256, 6 layers, 8 heads, feed-forward 768, float32. Batch 8, canvases of 256
tokens of which the last 32 are the answer and one block, temperature 1, cache `none`.

    forwards   of one answer, on average
    outside    time outside backbone and head for one forward of the batch: rules and draws, then the engine; and their
               share of the whole
    time       of one forward of the batch, all in, as a multiple of the confidence sampler's: what a probe costs shows
               here

Times are processor time; samplers take turns, numbers are medians over the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch

import models
import samplers
from benchmarks import history
from benchmarks.finding import prompts
from benchmarks.model_watch import ModelWatch
from benchmarks.models import llada_config, on_device
from benchmarks.timing import machine
from rollout import Engine
from samplers import BlockState, Commit, Evaluate, StepSampler

BASELINE = "confidence"


class Watched:
    """A sampler whose steps are counted and timed, without what they spend inside the model."""

    def __init__(self, sampler: StepSampler, watch: ModelWatch) -> None:
        self._sampler, self._watch = sampler, watch
        self.num_steps, self.own_s = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """The sampler's step."""
        start, inside = time.process_time(), self._watch.inside_s
        commit = self._sampler.step(state, evaluate)
        self.own_s += time.process_time() - start - (self._watch.inside_s - inside)
        self.num_steps += 1
        return commit


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of a sampler; milliseconds are for one forward of the batch."""

    forwards: float
    rules_ms: float
    engine_ms: float
    total_ms: float

    @property
    def outside(self) -> float:
        """Share of the time outside the model."""
        return (self.rules_ms + self.engine_ms) / self.total_ms


def cost(
    denoiser: models.Denoiser, name: str, prompt_BP: torch.Tensor, *, max_new_tokens: int, temperature: float
) -> Cost:
    """Answer the prompts once."""
    watch = ModelWatch()
    sampler = Watched(samplers.build(name), watch)
    engine = Engine(denoiser, sampler, block_length=max_new_tokens, max_batch_tokens=2**20)
    start = time.process_time()
    with watch.watching():
        answers = engine.generate(prompt_BP.tolist(), max_new_tokens=max_new_tokens, temperature=temperature)
    total_s = time.process_time() - start
    per_forward = 1000 / sampler.num_steps
    return Cost(
        forwards=mean(answer.num_forwards for answer in answers),
        rules_ms=sampler.own_s * per_forward,
        engine_ms=(total_s - watch.inside_s - sampler.own_s) * per_forward,
        total_ms=total_s * per_forward,
    )


def table(costs: dict[str, list[Cost]]) -> str:
    """Markdown rows: medians over the rounds."""
    lines = ["| sampler | forwards | outside: rules + engine, ms | share | time |", "|---|---|---|---|---|"]
    for name, rounds in costs.items():
        rules, engine, share = (
            median(getattr(one, field) for one in rounds) for field in ("rules_ms", "engine_ms", "outside")
        )
        ratio = median(one.total_ms / base.total_ms for one, base in zip(rounds, costs[BASELINE], strict=True))
        forwards = median(one.forwards for one in rounds)
        lines.append(f"| `{name}` | {forwards:.1f} | {rules:.2f} + {engine:.2f} | {share:.1%} | {ratio:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each vocabulary."""
    parser = argparse.ArgumentParser(
        prog="unmask bench samplers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", choices=samplers.names(), default=samplers.names())
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[8192])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--canvas", type=int, default=256, help="tokens of prompt and answer together")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repetitions", type=int, default=3, help="rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help=f"append the shares to {history.HISTORY.name}")
    options = parser.parse_args(argv)
    if options.max_new_tokens >= options.canvas:
        parser.error(f"--max-new-tokens {options.max_new_tokens} must be below --canvas {options.canvas}")
    torch.set_num_threads(options.threads)
    chosen = list(dict.fromkeys([BASELINE, *options.samplers]))
    print(machine(), flush=True)
    for vocabulary in options.vocabulary:
        denoiser = on_device(llada_config(width=256, layers=6, heads=8, ffn=768, vocabulary=vocabulary))
        prompt_BP = prompts(options.batch, options.canvas - options.max_new_tokens, vocabulary=vocabulary - 2)
        sizes = {"max_new_tokens": options.max_new_tokens, "temperature": options.temperature}
        cost(denoiser, BASELINE, prompt_BP, **sizes)
        costs: dict[str, list[Cost]] = {name: [] for name in chosen}
        for _ in range(options.repetitions):
            for name in chosen:
                costs[name].append(cost(denoiser, name, prompt_BP, **sizes))
        setting = f"batch {options.batch}, T = {options.temperature:g}, V = {vocabulary}"
        print(f"\n{setting}\n{table(costs)}", flush=True)
        if options.record:
            inside = {name: 1 - median(one.outside for one in rounds) for name, rounds in costs.items()}
            history.append(history.measured(f"samplers: share inside the model, {setting}", inside))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
