"""`unmask bench rollout`: the engine against baselines on the same weights, in one process.

Random weights, LLaDA's architecture: width 256, 6 layers, 8 heads, feed-forward 768, vocabulary 4096, float32; for
`groups` SDAR's architecture in the same size. Prompts of 128 tokens, answers of 128, blocks of 32, if not said
otherwise. No end token is ever predicted, so lengths are fixed (`ragged` plans its ends).

    exact    cache `none`, T = 0 and T = 1, against a plain decoder with the costs of the published LLaDA sampler
    dual     cache `dual`, one token a step and threshold 0.9, against a loop with the costs of published Fast-dLLM
    ragged   256 log-normal answers (cap 64, blocks of 8) through 16 slots, against static batches
    groups   32 answers to 2 prompts of 512 tokens, block-causal, prompts shared against not shared
    share    time outside backbone and head, T = 1
    law      the plain decoder and the engine draw from the same law

Times are processor time, taken in turn; ratios are medians over the rounds. The floor is the needed floating-point
work (`benchmarks/floor.py`) at the speed of matrix products measured in every round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch

import models
from benchmarks import history
from benchmarks.batching_cases import groups, ragged
from benchmarks.finding import Finding, Lengths
from benchmarks.law import law_distance as law_distance
from benchmarks.models import tiny, tiny_block_causal
from benchmarks.rollout_cases import dual, exact, share
from benchmarks.stock import Stock
from benchmarks.timing import machine

RAGGED = Lengths(prompt=16, answer=64, block=8)
GROUPS = Lengths(prompt=512, answer=128, block=4)


class Cases:
    """The cases in the sizes of the report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lengths = Lengths()

    @cached_property
    def denoiser(self) -> models.Denoiser:
        """The model of all cases but `groups`."""
        return tiny()

    @cached_property
    def stock(self) -> Stock:
        """What the baselines compute with."""
        return Stock(self.denoiser)

    def exact(self) -> Iterator[Finding]:
        """Greedy and drawing, in every batch size."""
        common = {"steps": self.options.steps, "lengths": self.lengths, "repetitions": self.options.repetitions}
        for batch in self.options.batches:
            for greedy in (True, False):
                yield exact(self.denoiser, self.stock, batch=batch, greedy=greedy, **common)

    def dual(self) -> Iterator[Finding]:
        """One token a step and by threshold, in every batch size."""
        common = {"lengths": self.lengths, "repetitions": self.options.repetitions}
        for batch in self.options.batches:
            for threshold in (None, 0.9):
                yield dual(self.denoiser, self.stock, batch=batch, threshold=threshold, **common)

    def ragged(self) -> Iterator[Finding]:
        """One round: the work is the same in each, and a round takes minutes."""
        yield ragged(
            self.denoiser, self.stock, sequences=256, slots=16, tokens_per_step=4, lengths=RAGGED, repetitions=1
        )

    def groups(self) -> Iterator[Finding]:
        """Two groups of 16."""
        denoiser, repetitions = tiny_block_causal(), self.options.repetitions
        yield groups(denoiser, num_prompts=2, num_samples=16, lengths=GROUPS, repetitions=repetitions)

    def share(self) -> Iterator[Finding]:
        """The largest batch."""
        sizes = {"batch": max(self.options.batches), "steps": self.options.steps, "lengths": self.lengths}
        yield share(self.denoiser, repetitions=self.options.repetitions, **sizes)

    def law(self) -> Iterator[Finding]:
        """Total variation on an enumerable model."""
        distance, chance = law_distance(number=self.options.answers)
        report = f"total variation {distance:.4f} between the decoders, {chance:.4f} between two lots of one decoder"
        yield Finding(f"law, {self.options.answers} answers each", {}, report)

    def named(self) -> dict[str, Callable[[], Iterator[Finding]]]:
        """Cases by name."""
        return {name: getattr(self, name) for name in NAMES}


NAMES = ("exact", "dual", "ragged", "groups", "share", "law")


def main(argv: Sequence[str] | None = None) -> int:
    """Print what each case found; return 1 if tokens differ that should not."""
    parser = argparse.ArgumentParser(
        prog="unmask bench rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="cases to run")
    parser.add_argument("--repetitions", type=int, default=3, help="rounds; ratios are medians")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 1], help="batch sizes of exact and dual")
    parser.add_argument("--steps", type=int, default=64, help="denoising steps of an answer in exact and share")
    parser.add_argument("--answers", type=int, default=6000, help="answers of each decoder to compare the laws by")
    parser.add_argument("--record", action="store_true", help=f"append the ratios to {history.HISTORY.name}")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    differences: list[str] = []
    cases = Cases(options).named()
    for case in options.only:
        for finding in cases[case]():
            print(f"\n{finding.name}\n{finding.report}", flush=True)
            differences += finding.differences
            if options.record and finding.ratios:
                history.append(history.measured(f"rollout: {finding.name}", finding.ratios))
    for difference in differences:
        print(f"NOT IDENTICAL: {difference}")
    return int(bool(differences))


if __name__ == "__main__":
    raise SystemExit(main())
