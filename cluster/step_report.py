"""What a run says of its steps and evaluations: numbers, tables and pictures for the tracker, lines for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.evaluate import EvalResult
from cluster.gather import REFILLED, Gathered
from cluster.metrics import step_metrics
from rollout.records import Group, Scored

if TYPE_CHECKING:
    from cluster.loop import TrainRun


def report_step(run: TrainRun, gathered: Gathered, learned: dict[str, float]) -> None:
    """Numbers and samples of the step just done."""
    seconds = run.watch.lap()
    publish_s = seconds.pop("publish", 0.0)
    seconds["sync"] = seconds.get("sync", 0.0) + publish_s
    seconds["wait_rollout"] = seconds.get("generate", 0.0) + seconds.get("reward", 0.0)
    seconds["wait_learner"] = seconds["update"] + seconds["sync"]
    failures = dict(gathered.failures)
    num_refilled = failures.pop(REFILLED, 0)
    metrics = step_metrics(
        gathered.groups, times=seconds, learner=learned, weights_version=run.step - 1, failures=failures
    )
    if run.recipe.learner.groups.on_uninformative == "refill":
        metrics["reward/refilled_groups"] = float(num_refilled)
    metrics |= {"weights/version": float(run.step), "weights/publish_s": publish_s} | health_metrics(run)
    run.tracker.log(run.step, metrics)
    if run.step == 1 or run.step % run.recipe.tracking.samples_every == 0 or run.step == run.recipe.steps:
        run.tracker.samples(run.step, first_rows(gathered.groups, run.recipe.tracking.num_sample_rows))
    run.progress.step(run.step, metrics)
    shown = sample_rows(gathered.groups[0])[0]
    run.progress.sample(shown["prompt"], shown["answer"], shown["reward"])


def health_metrics(run: TrainRun) -> dict[str, float]:
    """State of the pools, the buffer and the prompt order."""
    latencies = run.graders.take_call_seconds()
    return {
        "pool/ready": float(run.rollouts.num_ready),
        "pool/joined": float(run.rollouts.num_joined),
        "pool/restarts": float(run.rollouts.num_restarts + run.graders.num_restarts),
        "buffer/groups": float(len(run.buffer)),
        "buffer/bytes": float(run.buffer.num_bytes),
        "staleness/dropped": float(run.buffer.num_returned),
        "pool/reissued": float(run.rollouts.num_reissued),
        "prompts/quarantined": float(len(run.gatherer.quarantined)),
        "data/cursor": float(run.cursor.frontier),
        **{f"prompts/{name}": float(count) for name, count in run.buffer.counts.items()},
        **({"reward/latency_p95_s": float(np.percentile(latencies, 95))} if latencies else {}),
    }


def show_evaluation(run: TrainRun, result: EvalResult) -> None:
    """A line, a table of answers, and the order in which the first of them was denoised."""
    run.progress.note(
        f"evaluation at step {run.step}: {result.task} {result.accuracy:.1%} "
        f"({result.low:.1%} to {result.high:.1%}, {result.num_rows} rows), "
        f"{result.forwards_per_answer:.1f} forwards an answer"
    )
    answered = [group for group in result.samples if group.trajectories]
    run.tracker.evaluation(run.step, first_rows(answered, run.recipe.tracking.num_sample_rows))
    if answered:
        first = answered[0].trajectories[0]
        pieces = [str(run.tokenizer.decode([int(token)])) for token in first.tokens[: first.answer_length + 1]]
        reward = sample_rows(answered[0])[0]["reward"]
        run.tracker.order_picture(run.step, prompt_text(answered[0]), first, pieces, reward=reward)


def first_rows(groups: Sequence[Group], num_rows: int) -> list[dict[str, Any]]:
    """Table rows of many prompts rather than many answers to few: the first answer to each, then the second, ..."""
    of_groups = [sample_rows(group) for group in groups]
    most = max((len(rows) for rows in of_groups), default=0)
    return [rows[place] for place in range(most) for rows in of_groups if place < len(rows)][:num_rows]


def sample_rows(group: Group) -> list[dict[str, Any]]:
    """One table row for each answer of a group."""
    return [
        {
            "task": group.prompt.task,
            "prompt": prompt_text(group),
            "answer": trajectory.text,
            "reward": score.value if isinstance(score, Scored) else None,
            "correct": score.parts["correct"] if isinstance(score, Scored) else None,
            "failure": None if isinstance(score, Scored) else f"{score.kind}: {score.why}",
            "tokens": trajectory.answer_length,
            "forwards": trajectory.num_forwards,
            "finish": trajectory.finish_reason,
            "weights_version": trajectory.weights_version[0],
            "prompt_id": group.prompt.id,
        }
        for trajectory, score in zip(group.trajectories, group.scores, strict=True)
    ]


def prompt_text(group: Group) -> str:
    """The prompt as a person reads it."""
    prompt = group.prompt
    return prompt.text or "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.messages or ())
