"""Cases of `unmask bench rollout` in which all sequences take the same steps: caches `none` and `dual`."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import models
import samplers
from benchmarks import dual_decoder, dual_reference, floor, plain_decoder
from benchmarks.finding import Finding, Lengths, Measured, identity, number_differing, prompts, trace
from benchmarks.model_watch import ModelWatch
from benchmarks.stock import Stock
from rollout import Engine, Trajectory

PLAIN = "plain decoder"
LOOP = "published-style loop"


def exact(
    denoiser: models.Denoiser, stock: Stock, *, batch: int, steps: int, lengths: Lengths, greedy: bool, repetitions: int
) -> Finding:
    """Cache `none` against the plain decoder and the floor, tokens against the plain decoder where it is greedy.

    Drawing, the plain decoder has the law of `lcr`; `confidence` is the rule that reinforcement learning uses.
    """
    prompt_BP = prompts(batch, lengths.prompt)
    options: dict[str, Any] = {"max_new_tokens": lengths.answer, "steps": steps, "temperature": 0.0 if greedy else 1.0}
    rules = ("confidence",) if greedy else ("lcr", "confidence")
    engines = {f"engine ({rule})": _engine(denoiser, samplers.build(rule), lengths) for rule in rules}
    answers: dict[str, list[Trajectory]] = {}
    plain: list[torch.Tensor] = []

    def ours(name: str) -> Callable[[], object]:
        return lambda: answers.update({name: engines[name].generate(prompt_BP.tolist(), **options)})

    def theirs() -> None:
        plain[:] = [plain_decoder.decode(stock, prompt_BP, block_length=lengths.block, **options)]

    first = next(iter(engines))
    warm_up(engines[first], stock, prompt_BP, lengths)
    runs = {name: ours(name) for name in engines} | {PLAIN: theirs}
    products = floor.Products.of(denoiser, batch * (lengths.prompt + lengths.answer))
    measured = Measured.of(products, runs, repetitions)
    forwards = [f for answer in answers[first] for f in floor.exact_forwards(lengths.prompt, *trace(answer))]
    flops = floor.needed_flops(floor.Shape.of(denoiser), forwards)
    name = f"exact, batch {batch}, T = {0 if greedy else 1}"
    report = f"{measured.timings.table(PLAIN)}\n{measured.floor_line(flops, first, PLAIN)}"
    differences: tuple[str, ...] = ()
    if greedy:
        differing = number_differing([answer.tokens.tolist() for answer in answers[first]], plain[0].tolist())
        line, differences = identity(name, differing, batch, "the plain decoder's")
        report += f"\n{line}"
    ratios = {engine: measured.timings.ratio(engine, PLAIN) for engine in engines}
    return Finding(
        name, ratios | {"fraction of the floor": 1 / measured.times_floor(flops, first)}, report, differences
    )


def dual(
    denoiser: models.Denoiser,
    stock: Stock,
    *,
    batch: int,
    threshold: float | None,
    lengths: Lengths,
    repetitions: int,
) -> Finding:
    """Cache `dual` against the published-style loop and the floor, tokens against the slow reference. Greedy.

    One token a step, or every token above a threshold.
    """
    prompt_BP = prompts(batch, lengths.prompt)
    sampler = samplers.build("confidence") if threshold is None else samplers.build("threshold", tau=threshold)
    engine = _engine(denoiser, sampler, lengths, cache="dual")
    rule: dict[str, Any] = {"tokens_per_step": 1} if threshold is None else {"threshold": threshold}
    options = {"max_new_tokens": lengths.answer, "block_length": lengths.block, **rule}
    answers: list[Trajectory] = []

    def ours() -> None:
        answers[:] = engine.generate(prompt_BP.tolist(), max_new_tokens=lengths.answer)

    warm_up(engine, stock, prompt_BP, lengths)
    runs = {"engine": ours, LOOP: lambda: dual_decoder.decode(stock, prompt_BP, **options)}
    measured = Measured.of(floor.Products.of(denoiser, batch * lengths.block), runs, repetitions)
    forwards = [f for answer in answers for f in floor.dual_forwards(lengths.prompt, *trace(answer))]
    flops = floor.needed_flops(floor.Shape.of(denoiser), forwards)
    slow = [dual_reference.decode(stock, row, **options) for row in prompt_BP.tolist()]
    name = f"dual, batch {batch}, " + ("one token a step" if threshold is None else f"threshold {threshold:g}")
    differing = number_differing([answer.tokens.tolist() for answer in answers], slow)
    line, differences = identity(name, differing, batch, "the slow reference's")
    steps = sum(answer.num_steps for answer in answers) / batch
    report = (
        f"{measured.timings.table(LOOP)}\n{measured.floor_line(flops, 'engine', LOOP)}\n{line}, {steps:.1f} steps each"
    )
    ratios = {"engine": measured.timings.ratio("engine", LOOP)}
    fraction = {"fraction of the floor": 1 / measured.times_floor(flops, "engine")}
    return Finding(name, ratios | fraction, report, differences)


def share(denoiser: models.Denoiser, *, batch: int, steps: int, lengths: Lengths, repetitions: int) -> Finding:
    """How much of the engine's time is spent inside the model, drawing at temperature 1."""
    engine = _engine(denoiser, samplers.build("confidence"), lengths)
    prompt_BP = prompts(batch, lengths.prompt)
    shares = []
    for _ in range(repetitions + 1):
        watch, start = ModelWatch(), time.process_time()
        with watch.watching():
            engine.generate(prompt_BP.tolist(), max_new_tokens=lengths.answer, steps=steps, temperature=1.0)
        shares.append(watch.inside_s / (time.process_time() - start))
    shares = shares[1:]  # the first one warmed up
    inside = median(shares)
    report = f"outside the model: {1 - inside:.1%} of the time ({1 - max(shares):.1%} to {1 - min(shares):.1%})"
    # A share near 1 hardly moves when the rest doubles; this ratio halves.
    return Finding(f"share, batch {batch}, T = 1", {"model time over the rest": inside / (1 - inside)}, report)


def warm_up(engine: Engine, stock: Stock, prompt_BP: torch.Tensor, lengths: Lengths) -> None:
    """One short run of both sides, so that neither pays for first-time set-up."""
    engine.generate(prompt_BP.tolist(), max_new_tokens=lengths.block, steps=2)
    with torch.inference_mode():
        stock.logits(prompt_BP)


def _engine(
    denoiser: models.Denoiser, sampler: samplers.StepSampler, lengths: Lengths, *, cache: str = "none"
) -> Engine:
    return Engine(denoiser, sampler, block_length=lengths.block, cache=cache, max_batch_tokens=2**20)
