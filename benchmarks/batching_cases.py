"""Cases of `unmask bench rollout` about what a batch holds: ragged answers, and groups with one prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import models
import samplers
from benchmarks import floor, static_batch
from benchmarks.finding import Finding, Lengths, Measured, identity, prompts, trace
from benchmarks.planned_ends import EndsAsPlanned, log_normal_ends, planned_seed
from benchmarks.rollout_cases import warm_up
from benchmarks.stock import Stock
from benchmarks.timing import in_turn
from rollout import Engine, Request, Trajectory

CAPPED = "static batch to the cap"
ENDED = "static batch until all rows ended"
SHARED, UNSHARED = "prompts shared", "prompts not shared"


def ragged(
    denoiser: models.Denoiser,
    stock: Stock,
    *,
    sequences: int,
    slots: int,
    lengths: Lengths,
    tokens_per_step: int,
    repetitions: int,
) -> Finding:
    """Answers of log-normal lengths through a few slots, against static batches of as many rows. Greedy, cache `none`.

    The mean answer before the cut is a quarter of the cap.
    """
    prompt_BP = prompts(sequences, lengths.prompt)
    ends = log_normal_ends(sequences, mean=lengths.answer / 4, sigma=0.8, cap=lengths.answer)
    sampler = EndsAsPlanned(samplers.build("confidence", tokens_per_step=tokens_per_step), denoiser.eos_token_id)
    engine = Engine(denoiser, sampler, block_length=lengths.block, max_batch_rows=slots, max_batch_tokens=2**20)
    requests = [
        Request(prompt, lengths.answer, planned_seed(index, end))
        for index, (prompt, end) in enumerate(zip(prompt_BP.tolist(), ends, strict=True))
    ]
    answers: list[Trajectory] = []
    static: dict[str, list[static_batch.StaticAnswers]] = {}

    def ours() -> None:
        answers[:] = engine.run(requests)

    def theirs(name: str) -> Callable[[], object]:
        options = {"max_new_tokens": lengths.answer, "block_length": lengths.block, "tokens_per_step": tokens_per_step}
        lots = [slice(first, first + slots) for first in range(0, sequences, slots)]
        return lambda: static.update(
            {
                name: [
                    static_batch.decode(
                        stock, prompt_BP[lot], torch.tensor(ends[lot]), until_all_ended=name == ENDED, **options
                    )
                    for lot in lots
                ]
            }
        )

    warm_up(engine, stock, prompt_BP[:slots], lengths)
    runs = {"engine": ours, ENDED: theirs(ENDED), CAPPED: theirs(CAPPED)}
    timings = in_turn(runs, repetitions=repetitions, clock=time.process_time)
    computed = {"engine": sum(answer.num_forwards for answer in answers)}
    computed |= {name: sum(lot.num_forwards for lot in static[name]) for name in (ENDED, CAPPED)}
    name = f"ragged, {sequences} sequences through {slots} slots"
    whole = [row.tolist() for lot in static[CAPPED] for row in lot.token_BT]
    line, differences = identity(name, _differing_to_end(answers, whole, ends), sequences, "the static batch's")
    report = f"{timings.table(CAPPED)}\nmean answer {sum(ends) / sequences:.1f} tokens, cap {lengths.answer}; canvases "
    report += "computed: " + ", ".join(f"{key} {number}" for key, number in computed.items()) + f"\n{line}"
    ratios = {f"against {baseline}": timings.ratio("engine", baseline) for baseline in (CAPPED, ENDED)}
    return Finding(name, ratios, report, differences)


def _differing_to_end(answers: Sequence[Trajectory], whole: Sequence[list[int]], ends: Sequence[int]) -> int:
    """Answers that are not the same up to their end token."""
    return sum(
        answer.tokens[: end + 1].tolist() != row[: end + 1]
        for answer, row, end in zip(answers, whole, ends, strict=True)
    )


def groups(
    denoiser: models.Denoiser, *, num_prompts: int, num_samples: int, lengths: Lengths, repetitions: int
) -> Finding:
    """A block-causal family, cache `block`: a prompt computed once for its group, against once for each sample.

    Two tokens a step at temperature 1, where an answer may turn on the last bit of a product of another shape: the
    number of equal answers is told, not promised.
    """
    prompt_BP = prompts(num_prompts, lengths.prompt)
    options: dict[str, Any] = {"block_length": lengths.block, "cache": "block", "max_batch_tokens": 2**20}
    sampler = samplers.build("confidence", tokens_per_step=2)
    engines = {
        SHARED: Engine(denoiser, sampler, **options),
        UNSHARED: Engine(denoiser, sampler, share_prompts=False, **options),
    }
    answers: dict[str, list[Trajectory]] = {}

    def generate(name: str, max_new_tokens: int) -> list[Trajectory]:
        return engines[name].generate(
            prompt_BP.tolist(), num_samples=num_samples, max_new_tokens=max_new_tokens, temperature=1.0
        )

    def ours(name: str) -> Callable[[], object]:
        return lambda: answers.update({name: generate(name, lengths.answer)})

    for name in engines:
        generate(name, 2 * lengths.block)
    products = floor.Products.of(denoiser, num_prompts * num_samples * lengths.block)
    measured = Measured.of(products, {name: ours(name) for name in engines}, repetitions)
    forwards = num_prompts * floor.prompt_forwards(lengths.prompt, lengths.block)
    forwards += [f for answer in answers[SHARED] for f in floor.block_forwards(lengths.prompt, *trace(answer))]
    flops = floor.needed_flops(floor.Shape.of(denoiser), forwards)
    pairs = list(zip(answers[SHARED], answers[UNSHARED], strict=True))
    same = sum(a.tokens.tolist() == b.tokens.tolist() for a, b in pairs)
    report = f"{measured.timings.table(UNSHARED)}\n{measured.floor_line(flops, SHARED, UNSHARED)}"
    report += f"\ntokens: {same} of {len(pairs)} answers the same on both sides"
    ratios = {SHARED: measured.timings.ratio(SHARED, UNSHARED)}
    fraction = {"fraction of the floor": 1 / measured.times_floor(flops, SHARED)}
    return Finding(f"groups, {num_prompts} prompts, {num_samples} samples each", ratios | fraction, report)
