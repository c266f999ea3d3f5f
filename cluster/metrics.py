"""Groups, stage times and learner results become named numbers.

Pure functions from records to `dict[str, float]`. The part before `/` is the section of the dashboard. Names are those
of docs/metrics.md. A name with nothing to measure (no graded answer, no time) is left out, never given as 0.

A failed grading is not a score: it takes part in the rollout metrics and in `failure/`, never in rewards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np

from rollout.records import Failed, Group, Scored, Trajectory

Metrics = dict[str, float]


def clean_name(name: str) -> str:
    """A metric name that every MLflow store takes: letters, digits, `_ - . :` and single `/` between parts.

    A name without a section goes to `other/`.
    """
    parts = [clean_part(part) for part in name.split("/") if part.strip(". ")]
    return "/".join(parts if len(parts) > 1 else ["other", *parts])


def clean_part(part: str) -> str:
    """One part of a metric name: anything else than letters, digits, `_ - . :` and space becomes `_`."""
    cleaned = re.sub(r"[^A-Za-z0-9_\-. :]", "_", part).strip()
    return cleaned if cleaned.strip(".") else "_"


def prefix_clashes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs in which one name is a path prefix of the other, which file-backed stores cannot hold."""
    known = set(names)
    parents = ((name[:at], name) for name in known for at, letter in enumerate(name) if letter == "/")
    return sorted((parent, name) for parent, name in parents if parent in known)


def step_metrics(
    groups: Sequence[Group],
    *,
    times: Mapping[str, float],
    learner: Mapping[str, float],
    weights_version: int | None = None,
    failures: Mapping[str, int] | None = None,
) -> Metrics:
    """Everything that one training step has to say.

    `times` holds the seconds of each stage by its name (`generate`, `reward`, `update`, ...), `learner` the metrics
    of the update, with or without `train/`, and `failures` the failures by kind that no score carries (lost workers).
    `weights_version` is the version that the learner held when it took the groups; without it staleness is left out.
    """
    return {
        **time_metrics(times),
        **rollout_metrics([t for group in groups for t in group.trajectories], generate_s=times.get("generate")),
        **diversity_metrics(groups),
        **reward_metrics(groups),
        **task_metrics(groups),
        **train_metrics(learner),
        **(staleness_metrics(groups, weights_version) if weights_version is not None else {}),
        **failure_metrics(groups, failures or {}),
    }


def time_metrics(times: Mapping[str, float]) -> Metrics:
    """`time/<stage>_s` for each stage."""
    return {f"time/{stage.removesuffix('_s')}_s": float(seconds) for stage, seconds in times.items()}


def rollout_metrics(trajectories: Sequence[Trajectory], *, generate_s: float | None = None) -> Metrics:
    """How the answers were denoised, over all answers, graded or not.

    Tokens are the scored ones: committed, up to and including the first end token.
    """
    if not trajectories:
        return {}
    num_tokens = sum(int(t.scored.sum()) for t in trajectories)
    num_forwards = sum(t.num_forwards for t in trajectories)
    lengths = np.array([t.answer_length for t in trajectories])
    metrics = {
        "rollout/forwards_per_answer": num_forwards / len(trajectories),
        "rollout/answer_tokens_mean": float(lengths.mean()),
        "rollout/answer_tokens_max": float(lengths.max()),
        "rollout/empty_rate": float((lengths == 0).mean()),
        "rollout/truncated_rate": _mean(t.finish_reason == "length" for t in trajectories),
    }
    if num_forwards:
        metrics["rollout/tokens_per_forward"] = num_tokens / num_forwards
    if num_tokens:
        metrics["rollout/entropy_mean"] = sum(float(t.entropies[t.scored].sum()) for t in trajectories) / num_tokens
        metrics["rollout/logprob_mean"] = sum(float(t.logprobs[t.scored].sum()) for t in trajectories) / num_tokens
    if generate_s:
        metrics["rollout/tokens_per_s"] = num_tokens / generate_s
        metrics["rollout/answers_per_s"] = len(trajectories) / generate_s
    orders = [order for t in trajectories if (order := left_to_right_rate(t)) is not None]
    return metrics | ({"rollout/left_to_right_rate": _mean(orders)} if orders else {})


def left_to_right_rate(trajectory: Trajectory) -> float | None:
    """Share of neighbouring scored slots whose left one was committed first; the same step counts as half.

    1 for left to right, 0.5 on average for a random order, 0 for right to left; None with fewer than two such slots.
    """
    steps = trajectory.step_map[trajectory.scored]
    if len(steps) < 2:
        return None
    difference = np.diff(steps.astype(np.int64))
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def diversity_metrics(groups: Sequence[Group]) -> Metrics:
    """Distinct answers of a group over its answers: near 1/G, the sampler gives the group nothing to compare."""
    rates = [
        len({_answer(t) for t in group.trajectories}) / len(group.trajectories) for group in groups if group.scores
    ]
    return {"rollout/distinct_rate": _mean(rates)} if rates else {}


def reward_metrics(groups: Sequence[Group]) -> Metrics:
    """Rewards of the graded answers, their parts, and how many groups carry a signal."""
    scored = [score for group in groups for score in group.scores if isinstance(score, Scored)]
    if not scored:
        return {}
    values = np.array([score.value for score in scored])
    parts = sorted({part for score in scored for part in score.parts} - {"correct"})
    return {
        "reward/mean": float(values.mean()),
        "reward/std": float(values.std()),
        "reward/pass_rate": _mean(score.parts["correct"] for score in scored),
        **{f"reward/{clean_part(part)}_mean": _part_mean(scored, part) for part in parts},
        **_signal_metrics(groups),
    }


def task_metrics(groups: Sequence[Group]) -> Metrics:
    """The numbers worth following for each task, under `task.<name>/`."""
    metrics: Metrics = {}
    for task, of_task in _by_task(groups):
        rewards = reward_metrics(of_task)
        rollouts = rollout_metrics([t for group in of_task for t in group.trajectories])
        wanted = {
            "reward_mean": rewards.get("reward/mean"),
            "pass_rate": rewards.get("reward/pass_rate"),
            "zero_variance_rate": rewards.get("reward/zero_variance_rate"),
            "answer_tokens_mean": rollouts.get("rollout/answer_tokens_mean"),
            "forwards_per_answer": rollouts.get("rollout/forwards_per_answer"),
        }
        metrics |= {f"task.{task}/{name}": value for name, value in wanted.items() if value is not None}
    return metrics


def eval_metrics(groups: Sequence[Group]) -> Metrics:
    """`eval.<task>/...`: mean over prompts of the share of right answers, with its standard error, and the effort.

    Prompts with no graded answer leave the mean and are counted in `failed`.
    """
    metrics: Metrics = {}
    for task, of_task in _by_task(groups):
        shares = [_mean(correct) for group in of_task if (correct := _correct(group))]
        rollouts = rollout_metrics([t for group in of_task for t in group.trajectories])
        num_failed = sum(isinstance(score, Failed) for group in of_task for score in group.scores)
        of_metrics: Metrics = {"failed": float(num_failed)}
        if shares:
            of_metrics["accuracy"] = _mean(shares)
        if len(shares) > 1:
            of_metrics["accuracy_stderr"] = float(np.std(shares, ddof=1) / np.sqrt(len(shares)))
        for name in ("forwards_per_answer", "tokens_per_forward", "answer_tokens_mean", "truncated_rate"):
            if (value := rollouts.get(f"rollout/{name}")) is not None:
                of_metrics[name] = value
        metrics |= {f"eval.{task}/{name}": value for name, value in of_metrics.items()}
    return metrics


def train_metrics(learner: Mapping[str, float]) -> Metrics:
    """The learner's own numbers under `train/`, where they name no section themselves."""
    return {name if "/" in name else f"train/{name}": float(value) for name, value in learner.items()}


def staleness_metrics(groups: Sequence[Group], weights_version: int) -> Metrics:
    """Versions between the weights that drew an answer first and those that train on it."""
    drawn = [t.weights_version for group in groups for t in group.trajectories]
    if not drawn:
        return {}
    lags = [weights_version - first for first, _ in drawn]
    return {
        "staleness/mean": _mean(lags),
        "staleness/max": float(max(lags)),
        "staleness/mixed_version_rate": _mean(first != last for first, last in drawn),
    }


def failure_metrics(groups: Sequence[Group], failures: Mapping[str, int]) -> Metrics:
    """`failure/<kind>` for what failed in this step, graders' failures and others, and `failure/total` always."""
    counts = Counter(score.kind for group in groups for score in group.scores if isinstance(score, Failed))
    counts.update(failures)
    kinds = {f"failure/{clean_part(kind)}": float(count) for kind, count in sorted(counts.items()) if count}
    return {"failure/total": float(sum(counts.values())), **kinds}


def accuracies(rows: Iterable[Mapping[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Evaluation points (step, accuracy) of each task in rows of metrics.jsonl."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("eval.") and name.endswith("/accuracy"):
                task = name.removeprefix("eval.").removesuffix("/accuracy")
                points.setdefault(task, []).append((int(row["step"]), float(value)))
    return points


def _signal_metrics(groups: Sequence[Group]) -> Metrics:
    """Shares among the groups with at least two graded answers."""
    values = [[score.value for score in group.scores if isinstance(score, Scored)] for group in groups]
    corrects = [_correct(group) for group in groups]
    comparable = [(value, correct) for value, correct in zip(values, corrects, strict=True) if len(value) >= 2]
    if not comparable:
        return {}
    return {
        "reward/zero_variance_rate": _mean(max(value) == min(value) for value, _ in comparable),
        "reward/all_correct_rate": _mean(min(correct) >= 1 for _, correct in comparable),
        "reward/all_wrong_rate": _mean(max(correct) < 1 for _, correct in comparable),
    }


def _by_task(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    ordered = sorted(groups, key=lambda group: group.prompt.task)
    return [(clean_part(task), list(members)) for task, members in groupby(ordered, key=lambda g: g.prompt.task)]


def _correct(group: Group) -> list[float]:
    return [score.parts["correct"] for score in group.scores if isinstance(score, Scored)]


def _part_mean(scored: Sequence[Scored], part: str) -> float:
    return _mean(score.parts[part] for score in scored if part in score.parts)


def _answer(trajectory: Trajectory) -> bytes:
    return np.asarray(trajectory.tokens[: trajectory.answer_length], dtype=np.int64).tobytes()


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([float(value) for value in values]))
