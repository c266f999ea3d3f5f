"""Evaluation of a task's held-out rows: pass@1, pass@k, and what the answers cost.

R rows, n graded answers of a row, c of them right. With graders that failed, n is smaller than the number of samples: a
failed grading leaves the denominator and is counted, it is never a wrong answer.

    pass@k = mean over rows of 1 - C(n - c, k) / C(n, k)        n = 4, c = 1, k = 2: 1 - C(3, 2) / C(4, 2) = 0.5

maj@n is the share of rows whose most frequent answer (the whole text, ties by first seen) is right.

Confidence is 95 %. Rows are the independent trials. Wilson's interval serves pass@1 with R trials; where a row has many
samples its mean varies less than a coin does, so the interval is if anything too wide. Everything else is a percentile
bootstrap over rows; two samplers are compared on the rows that both have answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from cluster.chain_report import chain_numbers
from cluster.eval_rows import num_tokens
from cluster.statistics import Interval, bootstrap, majority, paired, pass_at_k, wilson
from reward.tasks import Task
from rollout.config import DecodingConfig, EvalConfig
from rollout.records import Failed, Group, Prompt, Score, Scored, Trajectory

Generate = Callable[[list[Prompt], int, int, DecodingConfig], list[list[Trajectory]]]
"""Prompts, number of samples, seed, decoding: the answers of each prompt."""
Grade = Callable[[list[tuple[str, Mapping[str, Any], str]]], list[Score]]
"""(task, row, completion) triples: a score of each."""


@dataclass(frozen=True)
class EvalResult:
    """What one task's evaluation came to. A number that nothing supports is nan."""

    task: str
    accuracy: float
    """pass@1: mean over rows of c / n."""
    low: float
    high: float
    """Wilson's interval of `accuracy`."""
    pass_at: dict[int, float]
    """pass@k by k, 1 included."""
    pass_at_interval: dict[int, Interval]
    forwards_per_answer: float
    forwards_interval: Interval
    tokens_per_forward: float
    """Tokens up to and including the first end token, over forwards."""
    tokens_interval: Interval
    answer_length: float
    """Mean tokens before the first end token."""
    capped_rate: float
    """Share of answers without an end token."""
    num_rows: int
    """Rows with at least one graded answer."""
    num_failed: int
    """Answers that could not be graded."""
    samples: tuple[Group, ...]
    """Everything that was drawn and graded."""
    majority: float = math.nan
    """maj@n."""
    majority_interval: Interval = (math.nan, math.nan)
    empty_rate: float = math.nan
    """Share of answers without any text."""
    entropy: float = math.nan
    """Mean entropy in nats of the model's prediction at the tokens that count."""
    chain: dict[str, Any] = field(default_factory=dict)
    """Acceptances and costs of a Metropolis sampler; empty for others."""

    def numbers(self) -> dict[str, Any]:
        """Everything but the samples, for JSON: nan is null, and keys are texts."""
        record = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "samples"}
        plain: dict[str, Any] = _plain(record)
        return plain


def evaluate(
    generate: Generate, grade: Grade, task: Task, eval_config: EvalConfig, seed: int, *, k: Sequence[int] = ()
) -> EvalResult:
    """Answer and grade the first `eval_config.limit` test rows. The same seed draws the same answers."""
    check_k(k, num_samples=eval_config.num_samples)
    prompts = [task.prompt(row) for row in task.rows("test")[: eval_config.limit]]
    answers = generate(prompts, eval_config.num_samples, seed, decoding_of(eval_config))
    items = [
        (task.name, prompt.gold, trajectory.text)
        for prompt, trajectories in zip(prompts, answers, strict=True)
        for trajectory in trajectories
    ]
    scores = iter(grade(items))
    groups = [
        Group(prompt, trajectories, [next(scores) for _ in trajectories])
        for prompt, trajectories in zip(prompts, answers, strict=True)
    ]
    return summarise(task.name, groups, k=k, seed=seed)


def summarise(task: str, groups: Sequence[Group], *, k: Sequence[int] = (), seed: int = 0) -> EvalResult:
    """The numbers of graded groups."""
    counted = [(n, c) for n, c in map(_counts, groups) if n]
    num_R = np.array([n for n, _ in counted])
    right_R = np.array([c for _, c in counted])
    accuracy = float((right_R / num_R).mean()) if counted else math.nan
    generator = np.random.default_rng(seed)
    at = {size: _pass_at_rows(num_R, right_R, size) for size in sorted({1, *k})}
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    forwards_R = np.array([sum(t.num_forwards for t in group.trajectories) for group in groups], dtype=float)
    tokens_R = np.array([sum(map(num_tokens, group.trajectories)) for group in groups], dtype=float)
    answers_R = np.array([len(group.trajectories) for group in groups], dtype=float)
    vote_R = np.array([majority(votes) for votes in map(_votes, groups) if votes], dtype=float)
    low, high = wilson(accuracy, len(counted))
    return EvalResult(
        task=task,
        accuracy=accuracy,
        low=low,
        high=high,
        pass_at={size: _mean(rows) for size, rows in at.items()},
        pass_at_interval={size: bootstrap(rows, np.ones_like(rows), generator) for size, rows in at.items()},
        forwards_per_answer=_ratio(forwards_R, answers_R),
        forwards_interval=bootstrap(forwards_R, answers_R, generator),
        tokens_per_forward=_ratio(tokens_R, forwards_R),
        tokens_interval=bootstrap(tokens_R, forwards_R, generator),
        answer_length=_mean([trajectory.answer_length for trajectory in trajectories]),
        capped_rate=_mean([trajectory.finish_reason == "length" for trajectory in trajectories]),
        num_rows=len(counted),
        num_failed=sum(isinstance(score, Failed) for group in groups for score in group.scores),
        samples=tuple(groups),
        majority=_mean(vote_R),
        majority_interval=bootstrap(vote_R, np.ones_like(vote_R), generator),
        empty_rate=_mean([not trajectory.text.strip() for trajectory in trajectories]),
        entropy=_mean(np.concatenate([t.entropies[t.scored] for t in trajectories]) if trajectories else []),
        chain=chain_numbers(trajectories),
    )


@dataclass(frozen=True)
class Comparison:
    """One sampler against another on the rows of a task that both have answered; same prompts, same seeds."""

    task: str
    sampler: str
    baseline: str
    num_rows: int
    pass_at: dict[int, float]
    """pass@k of the sampler minus that of the baseline."""
    pass_at_interval: dict[int, Interval]
    forwards_per_answer: float
    """Forwards of the sampler minus those of the baseline."""
    forwards_interval: Interval

    def numbers(self) -> dict[str, Any]:
        """For JSON: nan is null, and keys are texts."""
        plain: dict[str, Any] = _plain({field.name: getattr(self, field.name) for field in fields(self)})
        return plain


def compare(results: Sequence[tuple[str, EvalResult]], *, seed: int = 0) -> list[Comparison]:
    """Every (sampler, result) against the first of the same task."""
    first: dict[str, tuple[str, EvalResult]] = {}
    found = []
    for name, result in results:
        baseline = first.setdefault(result.task, (name, result))
        if baseline[1] is not result:
            found.append(_comparison((name, result), baseline, np.random.default_rng(seed)))
    return found


def _comparison(
    one: tuple[str, EvalResult], other: tuple[str, EvalResult], generator: np.random.Generator
) -> Comparison:
    groups = {group.prompt.id: group for group in other[1].samples}
    pairs = [(group, groups[group.prompt.id]) for group in one[1].samples if group.prompt.id in groups]
    counts_R22 = np.array([[_counts(group) for group in pair] for pair in pairs], dtype=int).reshape(-1, 2, 2)
    least_R = counts_R22[:, :, 0].min(axis=1)
    pass_at = {}
    for k in one[1].pass_at:
        counts_2R2 = counts_R22[least_R >= k].swapaxes(0, 1)
        mine, theirs = (_pass_at_rows(counts_R2[:, 0], counts_R2[:, 1], k) for counts_R2 in counts_2R2)
        pass_at[k] = paired(mine, theirs, generator)
    forwards = [
        np.array([_mean([t.num_forwards for t in pair[side].trajectories]) for pair in pairs]) for side in (0, 1)
    ]
    forwards_difference, forwards_interval = paired(forwards[0], forwards[1], generator)
    return Comparison(
        task=one[1].task,
        sampler=one[0],
        baseline=other[0],
        num_rows=int((least_R > 0).sum()),
        pass_at={k: difference for k, (difference, _) in pass_at.items()},
        pass_at_interval={k: interval for k, (_, interval) in pass_at.items()},
        forwards_per_answer=forwards_difference,
        forwards_interval=forwards_interval,
    )


def check_k(k: Sequence[int], *, num_samples: int) -> None:
    """Refuse a k that the number of samples cannot estimate."""
    for size in k:
        if not 1 <= size <= num_samples:
            raise ValueError(f"pass@{size} needs 1 <= k <= num_samples, and num_samples is {num_samples}; draw more")


def decoding_of(config: DecodingConfig) -> DecodingConfig:
    """The decoding settings alone of a configuration that extends them."""
    return DecodingConfig(**{name: getattr(config, name) for name in DecodingConfig.model_fields})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _counts(group: Group) -> tuple[int, int]:
    """Graded and right answers of a row."""
    scored = [score for score in group.scores if isinstance(score, Scored)]
    return len(scored), sum(score.parts["correct"] >= 1 for score in scored)


def _votes(group: Group) -> list[tuple[str, bool]]:
    """Graded answers of a row: text without space around it, and whether it is right."""
    return [
        (trajectory.text.strip(), score.parts["correct"] >= 1)
        for trajectory, score in zip(group.trajectories, group.scores, strict=True)
        if isinstance(score, Scored)
    ]


def _pass_at_rows(num_R: np.ndarray, right_R: np.ndarray, k: int) -> np.ndarray:
    """pass@k of each row with at least k graded answers."""
    return np.array([pass_at_k(int(n), int(c), k) for n, c in zip(num_R, right_R, strict=True) if n >= k])


def _ratio(above_R: np.ndarray, below_R: np.ndarray) -> float:
    return float(above_R.sum() / below_R.sum()) if below_R.sum() else math.nan


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
