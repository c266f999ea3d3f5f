"""`unmask bench regression`: have the ratios of `unmask bench rollout` fallen? In under three minutes on two cores.

The cases of the rollout benchmark in small sizes, each ratio compared with the newest recorded one of the same size
(`benchmarks/history.jsonl`). A ratio that is lower by more than the tolerance is measured once more, because noise
seldom strikes twice; if it stays low the command fails. So it does where tokens differ that should be equal.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import models
from benchmarks import history
from benchmarks.batching_cases import groups, ragged
from benchmarks.finding import Finding, Lengths
from benchmarks.models import tiny, tiny_block_causal
from benchmarks.rollout_cases import dual, exact, share
from benchmarks.stock import Stock
from benchmarks.timing import machine

TOLERANCE = 0.25
REPETITIONS = 3
SMALL = Lengths(prompt=64, answer=32, block=16)


def checks(repetitions: int = REPETITIONS) -> dict[str, Callable[[], Finding]]:
    """Small cases by name."""

    @cache
    def bidirectional() -> tuple[models.Denoiser, Stock]:
        denoiser = tiny()
        return denoiser, Stock(denoiser)

    def both(case: Callable[..., Finding], **sizes: object) -> Finding:
        return case(*bidirectional(), **sizes)

    small: dict[str, Any] = {"lengths": SMALL, "repetitions": repetitions}
    pieces = Lengths(prompt=16, answer=64, block=8)
    shared = Lengths(prompt=256, answer=32, block=4)
    return {
        "exact-greedy": partial(both, exact, batch=4, steps=16, greedy=True, **small),
        "exact-drawn": partial(both, exact, batch=4, steps=16, greedy=False, **small),
        "dual-one": partial(both, dual, batch=4, threshold=None, **small),
        "dual-threshold": partial(both, dual, batch=4, threshold=0.9, **small),
        "ragged": partial(both, ragged, sequences=48, slots=8, lengths=pieces, tokens_per_step=4, repetitions=1),
        "groups": lambda: groups(
            tiny_block_causal(), num_prompts=1, num_samples=8, lengths=shared, repetitions=repetitions
        ),
        "share": lambda: share(bidirectional()[0], batch=4, steps=16, **small),
    }


def fallen(now: Mapping[str, float], before: Mapping[str, float], tolerance: float) -> list[str]:
    """Names of recorded ratios that are missing now or lower by more than the tolerance, a share of the old ratio."""
    return [name for name, ratio in before.items() if now.get(name, 0.0) < (1 - tolerance) * ratio]


def check(name: str, measure: Callable[[], Finding], *, tolerance: float, path: Path) -> tuple[bool, str]:
    """Whether a case is as fast as recorded and its tokens as promised, and the lines that say so."""
    before = history.latest(f"regression: {name}", path)
    if before is None:
        return False, f"{name}: nothing is recorded to compare with; run `unmask bench regression --record` first"
    finding = measure()
    ratios = dict(finding.ratios)
    if fallen(ratios, before.ratios, tolerance):
        again = measure().ratios
        ratios = {key: max(ratio, again[key]) for key, ratio in ratios.items()}
    low = fallen(ratios, before.ratios, tolerance)
    lines = [f"{name} (recorded {before.date}, {before.version})"]
    for key, ratio in before.ratios.items():
        verdict = "FALLEN" if key in low else "ok"
        lines.append(f"    {key}: {ratios.get(key, float('nan')):.2f}, recorded {ratio:.2f}  {verdict}")
    lines += [f"    NOT IDENTICAL: {difference}" for difference in finding.differences]
    return not low and not finding.differences, "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print each ratio beside the recorded one; return 1 if one has fallen, or tokens differ."""
    parser = argparse.ArgumentParser(
        prog="unmask bench regression", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = tuple(checks())
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of a ratio that may be lost to noise")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="append what is measured instead of comparing it")
    parser.add_argument("--history", type=Path, default=history.HISTORY, help="file of recorded ratios")
    options = parser.parse_args(argv)
    if not 0 < options.tolerance < 1:
        parser.error(f"--tolerance is {options.tolerance}; it must be between 0 and 1")
    torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    passed = True
    for name, measure in checks(options.repetitions).items():
        if name not in options.only:
            continue
        if options.record:
            finding = measure()
            history.append(history.measured(f"regression: {name}", finding.ratios), options.history)
            ok, text = not finding.differences, f"{name}: {dict(finding.ratios)} {' '.join(finding.differences)}"
        else:
            ok, text = check(name, measure, tolerance=options.tolerance, path=options.history)
        print(text, flush=True)
        passed = passed and ok
    return int(not passed)


if __name__ == "__main__":
    raise SystemExit(main())
