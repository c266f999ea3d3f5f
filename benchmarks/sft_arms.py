"""`unmask bench sft_arms`: AGDO-SFT against random and blockwise fine-tuning, and what each of its parts does.

Every arm is `recipes/agdo-tiny-sft.yaml` with other masks: the same start, rows, number of updates and masked canvases
per example (5), per seed. Each result goes to a line of `results.jsonl` at once, so a comparison that was interrupted
goes on where it stopped, and several processes (`--seeds 0`, `--seeds 1`) may share a folder.

    unmask bench sft_arms --seeds 0,1,2                   trains and measures what is missing
    unmask bench sft_arms --report --picture FILE.png     the table of docs/sft.md, and its picture

Intervals: over seeds (95 %, t distribution), and of the difference from random masks over rows, paired by seed and row
(bootstrap). Both are given, because three seeds say little about seeds and 768 rows little about training.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from cluster.config import SftRecipe
from cluster.recipe import load

RECIPE = Path(__file__).parents[1] / "recipes" / "agdo-tiny-sft.yaml"
NUM_CANVASES = 5
_AGDO = {"kind": "agdo", "block_length": 8, "num_canvases": NUM_CANVASES}
ARMS: dict[str, dict[str, Any]] = {
    "random": {"kind": "random", "num_canvases": NUM_CANVASES, "t_min": 0.02},
    "blockwise": {"kind": "blockwise", "block_length": 4},
    "AGDO": {**_AGDO, "gamma": 100},
    "order only": {**_AGDO, "gamma": 0},
    "weights only": {**_AGDO, "gamma": 100, "order": "random", "block_length": None},
    "random order in blocks": {**_AGDO, "gamma": 0, "order": "random"},
    "shuffled weights": {**_AGDO, "gamma": 100, "weights": "shuffled"},
}
"""Masks of each arm; 20 slots in blocks of 4 are five canvases too."""
BLOCK_LENGTHS: dict[str, int | None] = {"8": 8, "all": None}
"""Blocks that the trained model answers in: the primary measure first."""
NUM_ROWS = 256
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantile of the t distribution, by number of seeds."""


@dataclass(frozen=True)
class Result:
    """One arm with one seed."""

    arm: str
    seed: int
    right: Mapping[str, Mapping[str, Sequence[int]]]
    """By block length and task: 1 for each row answered right, in the order of the rows."""
    held_out_loss: float
    influence: Mapping[str, float]
    """Statistics of the last update, where attention guided it."""


def main(arguments: Sequence[str] = ()) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="unmask bench sft_arms")
    parser.add_argument("--arms", default=",".join(ARMS), help="of: " + ", ".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=None, help="updates, if other than the recipe's")
    parser.add_argument("--lr", type=float, default=None, help="learning rate, if other than the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/sft-arms"))
    parser.add_argument("--report", action="store_true", help="only print the table of what is there")
    parser.add_argument("--picture", type=Path, default=None, help="with --report: draw it into this file")
    given = parser.parse_args(list(arguments))
    if not given.report:
        _measure(given)
    results = read_results(given.out)
    print("\n".join(table(results)))
    if given.picture is not None:
        draw(results, given.picture)
    return 0


def _measure(given: argparse.Namespace) -> None:
    """Every pair of arm and seed that has no line yet, seed by seed."""
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.jsonl"
    for seed in map(int, given.seeds.split(",")):
        for arm in given.arms.split(","):
            if any((result.arm, result.seed) == (arm, seed) for result in read_results(given.out)):
                continue
            result = run_arm(recipe_of(arm, seed, given.out, steps=given.steps, lr=given.lr), arm)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(vars(result)) + "\n")


def recipe_of(arm: str, seed: int, out: Path, *, steps: int | None = None, lr: float | None = None) -> SftRecipe:
    """The recipe of an arm."""
    overrides = {
        "sft.masking": json.dumps(ARMS[arm]),
        "seed": seed,
        "name": f"{arm.replace(' ', '-').replace(',', '')}-{seed}",
        "runs_dir": out,
        "eval.limit": 8,  # the measure is taken afterwards, on more rows
        **({"sft.steps": steps} if steps else {}),
        **({"learner.optimizer.lr": lr} if lr else {}),
    }
    texts = [f"{key}={value}" for key, value in overrides.items()]
    return load(RECIPE, SftRecipe, overrides=[*texts, f"sft.eval_every={steps or 0}"]).recipe


def run_arm(recipe: SftRecipe, arm: str) -> Result:
    """Train, then answer the held-out rows of every task with the last weights."""
    from cluster.sft_run import run_sft
    from cluster.tracking import read_metrics
    from learner import checkpoint

    summary = run_sft(recipe)
    last = checkpoint.step_folder(Path(summary.run_dir) / "checkpoints", summary.steps) / "model"
    trained = [row for row in read_metrics(Path(summary.run_dir)) if "sft/loss" in row][-1]
    return Result(
        arm=arm,
        seed=recipe.seed,
        right={name: _right(recipe, last, length) for name, length in BLOCK_LENGTHS.items()},
        held_out_loss=summary.last["eval/loss"],
        influence={key: value for key, value in trained.items() if "influence" in key or "row_mass" in key},
    )


def _right(recipe: SftRecipe, model: Path, block_length: int | None) -> dict[str, list[int]]:
    from cluster.eval_run import EvalRun
    from models.config import ModelConfig
    from rollout.config import DecodingConfig
    from rollout.records import Scored

    run = EvalRun(
        model=ModelConfig(path=str(model)),
        tasks=recipe.tasks,
        k=(1,),
        num_samples=1,
        limit=NUM_ROWS,
        seed=recipe.seed,
        max_batch_tokens=8192,
    )
    decoding = DecodingConfig(
        sampler=recipe.eval.sampler,
        max_new_tokens=recipe.eval.max_new_tokens,
        block_length=block_length,
        temperature=0.1,
    )
    return {
        result.task: [
            int(isinstance(score, Scored) and score.parts["correct"] >= 1)
            for group in result.samples
            for score in group.scores
        ]
        for _, result in run.results([decoding])
    }


def read_results(out: Path) -> list[Result]:
    """Lines written so far."""
    file = out / "results.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines]


# ---- the table


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: a row an arm; pass@1 with its interval over seeds, the difference from random masks over rows."""
    blocks = list(BLOCK_LENGTHS)
    tasks = list(results[0].right[blocks[0]]) if results else []
    head = ["masks", *[f"{task}" for task in tasks], "mean", "minus random", "mean, one block", "held-out loss"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for arm in ARMS:
        own = [result for result in results if result.arm == arm]
        if not own:
            continue
        cells = [over_seeds([_share(r, blocks[0], [task]) for r in own]) for task in tasks]
        cells.append(over_seeds([_share(r, blocks[0], tasks) for r in own]))
        cells.append(_difference(own, results, blocks[0], tasks))
        cells.append(over_seeds([_share(r, blocks[1], tasks) for r in own]))
        cells.append(f"{mean(r.held_out_loss for r in own):.4f}")
        lines.append(f"| {arm} ({len(own)}) | {' | '.join(cells)} |")
    return lines


def over_seeds(shares: Sequence[float]) -> str:
    """Mean in percent and half the width of its interval over seeds."""
    half = half_width(shares)
    return f"{100 * mean(shares):.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % t interval of the mean; nan for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return T_95[len(values)] * stdev(values) / math.sqrt(len(values))


def _share(result: Result, block: str, tasks: Sequence[str]) -> float:
    """Mean over tasks of the share of rows answered right."""
    return mean(mean(result.right[block][task]) for task in tasks)


def _difference(own: Sequence[Result], results: Sequence[Result], block: str, tasks: Sequence[str]) -> str:
    from cluster.statistics import paired

    random = {result.seed: result for result in results if result.arm == "random"}
    pairs = [(result, random[result.seed]) for result in own if result.seed in random]
    if own[0].arm == "random" or not pairs:
        return ""
    one, other = (
        np.concatenate([pair[side].right[block][task] for pair in pairs for task in tasks]) for side in (0, 1)
    )
    difference, (low, high) = paired(one, other, np.random.default_rng(0))
    return f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def draw(results: Sequence[Result], file: Path) -> None:
    """A dot a seed, a bar an arm's mean, by task and together."""
    from matplotlib.figure import Figure

    block = next(iter(BLOCK_LENGTHS))
    tasks = list(results[0].right[block])
    arms = [arm for arm in ARMS if any(result.arm == arm for result in results)]
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    panels = figure.subplots(1, len(tasks) + 1, sharey=True)
    for panel, (title, chosen) in zip(panels, [(t, [t]) for t in tasks] + [("mean of the tasks", tasks)], strict=True):
        for place, arm in enumerate(reversed(arms)):
            shares = [100 * _share(result, block, chosen) for result in results if result.arm == arm]
            colour = "#d1495b" if arm == "AGDO" else "#1f6feb"
            panel.plot(shares, [place] * len(shares), "o", color=colour, alpha=0.5, markersize=5)
            panel.plot([mean(shares)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2)
        panel.set_title(title, fontsize=10)
        panel.set_yticks(range(len(arms)), reversed(arms), fontsize=9)
        panel.grid(axis="x", color="#d0d7de", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("rows answered right, % (blocks of 8, temperature 0.1)", fontsize=9)
    figure.savefig(file, dpi=150)
