"""`unmask bench policy_frontier`: accuracy against forwards of unmasking policies and of the rules without training.

Held-out rows of the tasks, greedy tokens, one answer a row and seed. A policy and `random` draw positions, so they are
answered with three seeds; the others are the same for every seed.

    at equal forwards   accuracy of a policy minus that of the threshold sampler, interpolated along its sweep at the
                        forwards that the policy took, in points, with a 95 % interval (bootstrap over rows)

A policy that takes fewer forwards than the fastest threshold, or more than the slowest, is compared with that one.
Policies given with the same label (the same alpha, trained with several seeds) are one row: what each of them is above
or below the threshold by, at its own forwards, is listed, and the mean of these stands before with its interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import machine
from models.config import ModelConfig
from reward.config import TaskConfig
from reward.tasks import Task, build
from rollout.config import DecodingConfig, RolloutConfig
from rollout.worker import RolloutWorker
from samplers.config import SamplerConfig

BASELINE = "threshold"
SWEEPS: dict[str, tuple[str, tuple[float, ...]]] = {
    BASELINE: ("tau", (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99)),
    "confidence": ("tokens_per_step", (1, 2, 3, 4, 6)),
    "random": ("tokens_per_step", (2, 4, 6)),
    "eb": ("gamma", (0.1, 0.5, 1.0, 2.0)),
    "attn": ("tau", (0.6, 0.8, 0.9)),
}
DRAWS = ("random", "policy")
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Point:
    """One sampler with one setting on one task: R rows, S seeds (of every policy of the label in turn)."""

    sampler: str
    setting: str
    correct_RS: np.ndarray
    forwards_RS: np.ndarray
    num_policies: int = 1

    def each(self) -> list[Point]:
        """The policies of the label by themselves."""
        parts = zip(*(np.split(a, self.num_policies, axis=1) for a in (self.correct_RS, self.forwards_RS)), strict=True)
        return [Point(self.sampler, self.setting, correct_RS, forwards_RS) for correct_RS, forwards_RS in parts]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct_RS.mean())

    @property
    def forwards(self) -> float:
        """Mean forwards of an answer."""
        return float(self.forwards_RS.mean())


def measure(worker: RolloutWorker, task: Task, decoding: DecodingConfig, rows: int, seeds: Sequence[int]) -> Any:
    """Right answers and forwards (R, S)."""
    prompts = [task.prompt(row) for row in task.rows("test")[:rows]]
    correct, forwards = [], []
    for seed in seeds:
        answers = worker.generate(prompts, num_samples=1, seed=seed, decoding=decoding)
        scores = [task.grade(prompt.gold, found[0].text) for prompt, found in zip(prompts, answers, strict=True)]
        correct.append([getattr(score, "value", np.nan) for score in scores])
        forwards.append([found[0].num_forwards for found in answers])
    return np.array(correct).T, np.array(forwards, dtype=float).T


def settings(
    policies: Mapping[str, Sequence[Path]], names: Sequence[str], temperature: float | None = None
) -> list[tuple[str, str, list[SamplerConfig]]]:
    """Name, setting and samplers of every point."""
    found = [
        (name, f"{option} {value:g}", [SamplerConfig(name=name, options={option: value})])
        for name, (option, values) in SWEEPS.items()
        if name in names
        for value in values
    ]
    given = {} if temperature is None else {"temperature": temperature}
    return found + [
        ("policy", label, [SamplerConfig(name="policy", options={"path": str(path)} | given) for path in paths])
        for label, paths in policies.items()
    ]


def gap(policy: Point, sweep: Sequence[Point]) -> tuple[float, float, float]:
    """Policy minus threshold at equal forwards, in points, mean over the policies of the label: mean, low, high."""
    generator = np.random.default_rng(0)
    rows = len(policy.correct_RS)
    draws = [np.arange(rows), *(generator.integers(rows, size=rows) for _ in range(RESAMPLES))]
    differences = []
    for index in draws:
        line = sorted((point.forwards_RS[index].mean(), point.correct_RS[index].mean()) for point in sweep)
        forwards, correct = zip(*line, strict=True)
        above = [
            one.correct_RS[index].mean() - np.interp(one.forwards_RS[index].mean(), forwards, correct)
            for one in policy.each()
        ]
        differences.append(100 * float(np.mean(above)))
    low, high = np.percentile(differences[1:], [2.5, 97.5])
    return differences[0], float(low), float(high)


def draw(panels: Mapping[str, Sequence[Point]], path: Path) -> None:
    """One panel a task and block length: accuracy over forwards, a line a sampler."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, len(panels) // 2) if len(panels) > 3 else len(panels)
    figure = Figure(figsize=(4 * columns, 3.2 * -(-len(panels) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flatten()
    for axes, (title, points) in zip(grid, panels.items(), strict=False):
        for name in [*SWEEPS, "policy"]:
            alone = [one for p in points if p.sampler == name for one in p.each()]
            mine = sorted((p.forwards, 100 * p.accuracy) for p in alone)
            if not mine:
                continue
            style = (
                {"marker": "*", "markersize": 9, "linestyle": "none", "color": "black"}
                if name == "policy"
                else {"marker": "."}
            )
            axes.plot([f for f, _ in mine], [a for _, a in mine], label=name, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("forwards an answer")
        axes.set_ylabel("right answers, %")
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def table(title: str, points: Sequence[Point]) -> str:
    """Markdown rows of one task."""
    sweep = [point for point in points if point.sampler == BASELINE]
    lines = [
        f"\n{title}",
        "| sampler | setting | right, % | forwards | against threshold at equal forwards |",
        "|---|---|---|---|---|",
    ]
    for point in points:
        against = ""
        if point.sampler == "policy":
            mean, low, high = gap(point, sweep)
            against = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
            if point.num_policies > 1:
                against += "; each " + ", ".join(f"{gap(one, sweep)[0]:+.1f}" for one in point.each())
        lines.append(
            f"| `{point.sampler}` | {point.setting} | {100 * point.accuracy:.1f} | {point.forwards:.2f} | {against} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and write the picture and the numbers where asked."""
    parser = argparse.ArgumentParser(
        prog="unmask bench policy_frontier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", action="append", default=[], metavar="LABEL=FOLDER", help="may be repeated, also with one label"
    )
    parser.add_argument("--temperature", type=float, help="of the policies; their own setting if not given")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tasks", nargs="+", default=["sudoku4", "arithmetic", "countdown"])
    parser.add_argument("--block-lengths", type=int, nargs="+", default=[0], help="0: full diffusion")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samplers", nargs="*", choices=list(SWEEPS), default=list(SWEEPS), help="beside threshold")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    policies: dict[str, list[Path]] = {}
    for label, _, folder in (text.partition("=") for text in options.policy):
        policies.setdefault(label, []).append(Path(folder))
    worker = RolloutWorker(ModelConfig(path=options.model), RolloutConfig())
    worker.load()
    print(machine(), flush=True)
    panels: dict[str, list[Point]] = {}
    for block in options.block_lengths:
        for name in options.tasks:
            task = build(TaskConfig(name=name))
            title = f"{name}, {f'blocks of {block}' if block else 'full diffusion'}"
            panels[title] = []
            for sampler, setting, configs in settings(policies, [BASELINE, *options.samplers], options.temperature):
                seeds = options.seeds if sampler in DRAWS else options.seeds[:1]
                found = []
                for config in configs:
                    decoding = DecodingConfig(
                        sampler=config,
                        temperature=0.0,
                        max_new_tokens=options.max_new_tokens,
                        block_length=block or None,
                    )
                    found.append(measure(worker, task, decoding, options.rows, seeds))
                correct_RS, forwards_RS = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
                panels[title].append(Point(sampler, setting, correct_RS, forwards_RS, len(configs)))
            print(table(title, panels[title]), flush=True)
    if options.picture is not None:
        draw(panels, options.picture)
    if options.json is not None:
        numbers = {
            title: [[p.sampler, p.setting, p.accuracy, p.forwards] for p in points] for title, points in panels.items()
        }
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
