"""`unmask bench gpu`: rollouts and a training step at published sizes, against the speed of matrix products.

    python -m benchmarks.gpu                                     LLaDA-8B and SDAR-8B shapes, bfloat16, on a GPU
    python -m benchmarks.gpu --shape tiny --device cpu           the same code in a minute, anywhere

It needs torch and transformers and this folder's neighbours, no Ray. Weights are random, made on the device; the number
of steps is fixed, so tokens a forward are what is asked for and only the cost of a forward is measured.

    exact     LLaDA, cache `none`            dual     LLaDA, cache `dual`, refreshed at each block
    block     SDAR, cache `block`, groups of 16 with a shared prompt
    learner   LLaDA, one optimizer step of low-rank adapters: likelihoods of answers denoised in 4 steps

The last columns: needed floating-point work (`benchmarks/floor.py`) over the time taken, as a share of the speed of
matrix products measured here at the same number of rows, and as a share of what a GPU that sustains `--limit-tflops`
would do.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

import models
from benchmarks import floor, history
from benchmarks.adapters import adapt
from benchmarks.finding import Lengths, prompts, trace
from benchmarks.gpu_sizes import SHAPES, TRAINED_STEPS, random_answers
from benchmarks.models import on_device
from benchmarks.timing import machine
from learner import sequence_logprobs
from rollout import Engine, Trajectory
from samplers.count import Fixed
from samplers.position import Confidence
from samplers.sampler import Sampler

NAMES = ("exact", "dual", "block", "learner")
RANK = 16


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    tokens: int
    """Answer tokens made; canvas tokens forwarded in a training step."""
    tokens_per_forward: float
    """Answer tokens that a sequence gets from one forward; 0 where it means nothing."""
    seconds: float
    flops: int
    peak: float
    """Operations a second of matrix products."""
    limit: float
    """Operations a second that the GPU is supposed to sustain."""

    def ratios(self) -> dict[str, float]:
        """Shares for the history."""
        return {"of the products": self.flops / self.seconds / self.peak}

    def __str__(self) -> str:
        speed = self.tokens / self.seconds
        tpf = self.tokens_per_forward
        each = f"{tpf:.2g} | {speed:.4g} | {speed / tpf:.4g}" if tpf else f"- | {speed:.4g} | -"
        rate = self.flops / self.seconds
        return f"| {self.what} | {each} | {rate / self.peak:.0%} | {rate / self.limit:.0%} |"


@dataclass(frozen=True)
class Work:
    """Answers to make."""

    name: str
    lengths: Lengths
    num_prompts: int
    num_samples: int
    tokens_per_forward: int

    def __str__(self) -> str:
        return f"{self.name}, batch {self.num_prompts * self.num_samples}, {self.lengths}"


HEAD = """| what | tokens a forward | tokens/s | tokens/s for 1 token a forward | of the products | of the limit |
|---|---|---|---|---|---|"""


class Bench:
    """The measurements on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.sizes = SHAPES[options.shape]
        self.device, self.dtype = options.device, getattr(torch, options.dtype)
        self.tokens_per_forward: list[int] = options.tokens_per_forward
        self.limit = options.limit_tflops * 1e12

    def llada(self, names: Sequence[str]) -> Iterator[Row]:
        """Rows of the bidirectional model."""
        denoiser = on_device(self.sizes.llada, device=self.device, dtype=self.dtype)
        lengths, batch = self.sizes.llada_lengths, self.sizes.llada_batch
        for name, cache, width in (
            ("exact", "none", lengths.prompt + lengths.answer),
            ("dual", "dual", lengths.block),
        ):
            if name not in names:
                continue
            count = partial(floor.exact_forwards if cache == "none" else floor.dual_forwards, lengths.prompt)
            peak = self.peak(denoiser, batch * width)
            for number in self.tokens_per_forward:
                work = Work(f"LLaDA {name}", lengths, batch, 1, number)
                yield self.rollout(work, denoiser, cache, peak, count)
        if "learner" in names:
            yield self.learner(denoiser)

    def sdar(self) -> Iterator[Row]:
        """Rows of the block-causal model."""
        sizes, lengths = self.sizes, self.sizes.sdar_lengths
        denoiser = on_device(sizes.sdar, device=self.device, dtype=self.dtype)
        peak = self.peak(denoiser, sizes.sdar_prompts * sizes.sdar_samples * lengths.block)
        for number in self.tokens_per_forward:
            if number <= lengths.block:
                work = Work("SDAR block", lengths, sizes.sdar_prompts, sizes.sdar_samples, number)
                count = partial(floor.block_forwards, lengths.prompt)
                yield self.rollout(work, denoiser, "block", peak, count)

    def rollout(
        self,
        work: Work,
        denoiser: models.Denoiser,
        cache: str,
        peak: float,
        count: Callable[..., list[floor.Forward]],
    ) -> Row:
        """Time answers drawn at temperature 1: the most confident slots, as many as the step budget says."""
        lengths = work.lengths
        sampler = Sampler("confidence", Confidence(), Fixed())
        engine = Engine(denoiser, sampler, block_length=lengths.block, cache=cache, max_batch_tokens=2**20)
        prompt_BP = prompts(work.num_prompts, lengths.prompt, vocabulary=500)

        def generate(max_new_tokens: int) -> list[Trajectory]:
            return engine.generate(
                prompt_BP.tolist(),
                num_samples=work.num_samples,
                max_new_tokens=max_new_tokens,
                steps=max_new_tokens // work.tokens_per_forward,
                temperature=1.0,
            )

        generate(2 * lengths.block)
        answers, seconds = self.timed(lambda: generate(lengths.answer))
        forwards = [forward for answer in answers for forward in count(*trace(answer))]
        if cache == "block":
            forwards += work.num_prompts * floor.prompt_forwards(lengths.prompt, lengths.block)
        tokens = sum(answer.answer_length for answer in answers)
        per_forward = tokens / sum(answer.num_steps for answer in answers)
        flops = floor.needed_flops(floor.Shape.of(denoiser), forwards)
        return Row(str(work), tokens, per_forward, seconds, flops, peak, self.limit)

    def learner(self, denoiser: models.Denoiser) -> Row:
        """Time optimizer steps of low-rank adapters; the model keeps them."""
        lengths, number = self.sizes.llada_lengths, self.sizes.trained
        optimizer = torch.optim.AdamW(adapt(denoiser, RANK), lr=1e-5)
        answers = random_answers(number, lengths)
        prompt_tokens = [answer.prompt_tokens.tolist() for answer in answers]
        canvas, canvases = lengths.prompt + lengths.answer, number * TRAINED_STEPS
        tokens = canvases * canvas

        def step() -> None:
            logprobs = sequence_logprobs(denoiser, prompt_tokens, answers, temperature=1.0, micro_batch_tokens=tokens)
            (-torch.cat(logprobs).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        seconds = median(self.timed(step)[1] for _ in range(3))
        forwards = [floor.Forward(canvas, canvas, lengths.answer // TRAINED_STEPS)] * canvases
        flops = floor.training_flops(floor.Shape.of(denoiser), forwards, adapters=True)
        what = f"LLaDA adapters of rank {RANK}, {tokens} canvas tokens a step"
        return Row(what, tokens, 0, seconds, flops, self.peak(denoiser, tokens), self.limit)

    def peak(self, denoiser: models.Denoiser, rows: int) -> float:
        """Operations a second of matrix products at so many rows: the best of five tries."""
        products = floor.Products.of(denoiser, rows, seconds=0.1)
        return products.flops / min(self.timed(products.run)[1] for _ in range(5))

    def timed(self, run: Callable[[], Any]) -> tuple[Any, float]:
        """What a function returns, and the seconds until the device has done it."""
        self._synchronize()
        start = time.perf_counter()
        value = run()
        self._synchronize()
        return value, time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def rows(bench: Bench, names: Sequence[str]) -> Iterator[Row]:
    """All rows that are asked for, one model after the other: the first one's memory is free before the second."""
    if {"exact", "dual", "learner"} & set(names):
        yield from bench.llada(names)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if "block" in names:
        yield from bench.sdar()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="unmask bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="rows to measure")
    parser.add_argument("--tokens-per-forward", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--limit-tflops", type=float, default=700.0, help="what the GPU is supposed to sustain")
    parser.add_argument("--record", action="store_true", help="append the shares to the history")
    parser.add_argument("--history", type=Path, default=history.HISTORY, help="file of recorded ratios")
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; --shape tiny --device cpu shows that everything runs")
    versions = f"transformers {transformers.__version__}, CUDA {torch.version.cuda}"
    print(f"{machine()}, {versions}, sources {history.source_version()}, {options.shape} in {options.dtype}\n\n{HEAD}")
    for row in rows(Bench(options), options.only):
        print(row, flush=True)
        if options.record:
            history.append(
                history.measured(f"gpu: {row.what}, {row.tokens_per_forward:.2g} a forward", row.ratios()),
                options.history,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
