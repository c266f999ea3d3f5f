"""`unmask bench objectives`: the objectives under one protocol, at equal numbers of forwards, gradients included.

Every arm starts from the built-in model and trains on 4x4 Sudoku until it has spent its budget of forwards: each call
of the model for one sequence counts 1, at rollout and in the learner's passes without gradients, and 3 with gradients.
So a method that scores an answer from few canvases draws more answers for the same budget. Evaluation is not counted.
All arms have the same optimizer, prompts per update, samples per prompt and one token a denoising step; the order of
the rollout is the one that the method's likelihood needs (left to right for JustGRPO, else by confidence).

Every arm has a learning rate of its own: `--tune` trains each with several, from a seed that the comparison does not
use, and measures on rows that are kept out of training and are not the test rows; the comparison then takes the best.

Accuracy is greedy, at equal shares of the budget. A result is a line of JSON, and what is there already is not run
again; `--table` prints the table of a file and draws its picture, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import models
import reward
import rollout
import samplers
from benchmarks.objective_arms import ARMS, Arm
from benchmarks.objective_report import picture, table
from benchmarks.sink import GradientSink
from benchmarks.timing import machine
from learner import BatchStats, Sample, group_advantages, policy_update
from learner.config import OptimizerConfig
from learner.optimizer import ClippedAdamW, adamw, learning_rate
from rollout.records import Scored, Trajectory
from rollout.request import sequence_seed

TASK, MAX_NEW_TOKENS = "sudoku4", 18
MICRO_BATCH_TOKENS = 4096
EVAL_SEED, TUNE_SEED = 12345, 99
ORDERS = ("confidence", "ar")
"""Of evaluation; between start and end only the first, which is the primary one."""
_START: dict[tuple[str, int], dict[str, float]] = {}
"""Accuracies of the starting weights by kind and number of rows."""


@dataclass(frozen=True)
class Settings:
    """What all arms have in common."""

    budget: int
    prompts: int
    samples: int
    lr: float
    warmup: int
    eval_rows: int
    eval_points: int
    eval_on: str = "test"
    """`test`, or `validation`: the last `eval_rows` of the training rows, on which no arm trains."""


class AdamSink(GradientSink):
    """The learner's optimizer without DeepSpeed: one process, float32."""

    def __init__(self, denoiser: models.Denoiser, config: OptimizerConfig) -> None:
        super().__init__(denoiser)
        self._config, self._num_updates = config, 0
        self._optimizer = adamw(denoiser, config, clips=True)
        assert isinstance(self._optimizer, ClippedAdamW)

    def step(self) -> dict[str, float]:
        """One AdamW step, gradients clipped by their norm."""
        lr = learning_rate(self._config, step=self._num_updates, total_steps=10**9)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._num_updates += 1
        return {"grad_norm": self._optimizer.grad_norm, "lr": lr}  # type: ignore[attr-defined]


class Run:
    """One arm from one seed."""

    def __init__(self, arm: Arm, seed: int, settings: Settings) -> None:
        self.arm, self.seed, self.settings = arm, seed, settings
        self.denoiser = models.load("tiny")
        self.task = reward.task(TASK)
        self.engine = rollout.Engine(self.denoiser, samplers.build(arm.sampler, **arm.options))
        self.trainer = AdamSink(self.denoiser, OptimizerConfig(lr=settings.lr, warmup_steps=settings.warmup))
        self.forwards, self.updates, self.answers = 0.0, 0, 0

    def train(self) -> dict[str, Any]:
        """Curve of (forwards, accuracies) and the last update's numbers."""
        settings, start = self.settings, time.process_time()
        marks = [settings.budget * i / settings.eval_points for i in range(1, settings.eval_points + 1)]
        curve, last = [{"forwards": 0.0, **self.start()}], {}
        while marks:
            last = self.update()
            if self.forwards >= marks[0]:
                marks = [mark for mark in marks if mark > self.forwards]
                orders = ORDERS[: 1 if marks else 2]
                curve.append({"forwards": self.forwards, **self.accuracies(orders)})
        kept = {name: value for name, value in last.items() if name.startswith("agdo/") or name in ("clip_rate", "kl")}
        return {
            "curve": curve,
            "updates": self.updates,
            "answers": self.answers,
            "last": kept,
            "cpu_s": round(time.process_time() - start, 1),
        }

    def start(self) -> dict[str, float]:
        """Accuracies of the starting weights: the same for every arm and seed, so measured once."""
        key = self.settings.eval_on, self.settings.eval_rows
        if key not in _START:
            _START[key] = self.accuracies(ORDERS)
        return _START[key]

    def update(self) -> dict[str, float]:
        """Draw, grade, train; counts the forwards."""
        settings = self.settings
        rows = self.task.rows("train")[: -settings.eval_rows]
        offset = sequence_seed(self.seed, "rows") % len(rows)
        first = offset + self.updates * settings.prompts
        chosen = [rows[(first + i) % len(rows)] for i in range(settings.prompts)]
        answers = self.answer(
            chosen, self.engine, settings.samples, 1.0, sequence_seed(self.seed, "draw", self.updates)
        )
        scores = [self.task.grade(row, t.text) for row, of_row in zip(chosen, answers, strict=True) for t in of_row]
        assert all(isinstance(score, Scored) for score in scores)
        value_BG = torch.tensor([score.value for score in scores]).view(settings.prompts, settings.samples)
        objective = self.arm.config
        advantage_BG = group_advantages(value_BG, torch.ones_like(value_BG).bool(), kind=objective.advantage)
        flat = [t for of_row in answers for t in of_row]
        samples = [Sample(t, float(a)) for t, a in zip(flat, advantage_BG.flatten(), strict=True)]
        metrics = policy_update(
            self.trainer, samples, BatchStats.of(samples), objective, micro_batch_tokens=MICRO_BATCH_TOKENS
        )
        self.forwards += sum(t.num_forwards for t in flat) + metrics["forward_equivalents"]
        self.answers += len(flat)
        self.updates += 1
        return metrics

    @torch.no_grad()
    def answer(
        self, rows: Sequence[Any], engine: rollout.Engine, num_samples: int, temperature: float, seed: int
    ) -> list[list[Trajectory]]:
        """Answers with their text, row by row."""
        prompts = [self.task.prompt(row) for row in rows]
        tokens = [models.encode_prompt(self.denoiser, prompt.text, prompt.messages) for prompt in prompts]
        found = engine.generate(
            tokens, num_samples=num_samples, max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed
        )
        texts = [replace(t, text=models.decode_answer(self.denoiser, t.tokens[: t.answer_length])) for t in found]
        return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]

    def accuracies(self, orders: Sequence[str]) -> dict[str, float]:
        """Greedy answers to the rows of evaluation, by each order."""
        number = self.settings.eval_rows
        rows = self.task.rows("test")[:number] if self.settings.eval_on == "test" else self.task.rows("train")[-number:]
        found = {}
        for order in orders:
            engine = rollout.Engine(self.denoiser, samplers.build(order))
            answers = self.answer(rows, engine, 1, 0.0, EVAL_SEED)
            scores = [self.task.grade(row, t.text) for row, (t,) in zip(rows, answers, strict=True)]
            right = [score.parts["correct"] for score in scores if isinstance(score, Scored)]
            found[order] = sum(right) / len(right)
        return found


def best_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Learning rate of each arm with the highest accuracy at the end of its tuning; of equal ones the lowest."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        found = (row["curve"][-1]["confidence"], -row["settings"]["lr"])
        best[row["arm"]] = max(best.get(row["arm"], found), found)
    return {arm: -rate for arm, (_, rate) in best.items()}


def run_all(plan: Sequence[tuple[str, int, Settings]], results: Path) -> list[dict[str, Any]]:
    """Train what is missing of (arm, seed, settings), a line of `results` each; everything in the file."""
    rows = read(results)
    done = {(row["arm"], row["seed"], row["settings"]["lr"]) for row in rows}
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        for name, seed, settings in plan:
            if (name, seed, settings.lr) in done:
                continue
            rows.append(
                {"arm": name, "seed": seed, "settings": vars(settings), **Run(ARMS[name], seed, settings).train()}
            )
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            last = rows[-1]["curve"][-1]
            print(f"{name}, seed {seed}, lr {settings.lr}: {last}, {rows[-1]['cpu_s']} s", flush=True)
    return rows


def read(results: Path) -> list[dict[str, Any]]:
    """Lines of a file of results; none where there is no file."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def tune(options: argparse.Namespace, common: Settings) -> dict[str, float]:
    """The best learning rate of each arm, by half the budget on rows of validation."""
    settings = replace(common, budget=common.budget // 2, eval_points=1, eval_on="validation")
    plan = [(arm, TUNE_SEED, replace(settings, lr=lr)) for lr in options.rates for arm in options.arms]
    rates = best_rates(run_all(plan, options.tune))
    print("learning rates:", rates, flush=True)
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        prog="unmask bench objectives", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("runs/objectives.jsonl"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=24_000, help="forwards of an arm, gradients included")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per update")
    parser.add_argument("--samples", type=int, default=8, help="answers per prompt")
    parser.add_argument("--tune", type=Path, default=Path("runs/objectives-rates.jsonl"), help="results of tuning")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4], help="learning rates to try")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--eval-rows", type=int, default=256)
    parser.add_argument("--eval-points", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the table of --results")
    parser.add_argument("--picture", type=Path, help="where to draw accuracy over forwards (PNG)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = read(options.results)
    if not options.table:
        print(machine(), flush=True)
        names = ("budget", "prompts", "samples", "warmup", "eval_rows", "eval_points")
        common = Settings(lr=math.nan, **{name: getattr(options, name) for name in names})
        rates = tune(options, common)
        plan = [(arm, seed, replace(common, lr=rates[arm])) for seed in options.seeds for arm in options.arms]
        rows = run_all(plan, options.results)
    print(table(rows))
    if options.picture is not None:
        picture(rows, options.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
