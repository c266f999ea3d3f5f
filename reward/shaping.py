"""What a score becomes before answers are compared: penalties on length, a share for form, answers cut off.

    value = score + format_weight * format part - length_penalty * answer slots / T - overlong penalty

The overlong penalty (DAPO's soft punishment, 2503.14476, equation 13) rises from 0 at `T - overlong_slots` answer slots
to `overlong_penalty` at T. With `truncated: drop` an answer without an end token is no score at all: whether it was on
its way to a right answer is not known, so it leaves its group and is counted (DAPO's overlong filtering).

Only training sees shaped scores; evaluations and the parts of a score (`correct`, `format`) are as graded.

T: response slots of the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reward.config import ShapingConfig
from rollout.records import Failed, Score, Trajectory


def shaped(score: Score, trajectory: Trajectory, config: ShapingConfig) -> Score:
    """The score to train on; failures stay what they are."""
    if isinstance(score, Failed):
        return score
    num_slots, length = len(trajectory.tokens), trajectory.answer_length
    if config.truncated == "drop" and trajectory.finish_reason == "length":
        return Failed("truncated", f"the answer filled all {num_slots} slots without an end token")
    value = score.value
    if config.format_weight:
        if "format" not in score.parts:
            raise ValueError(
                f"reward.shaping.format_weight {config.format_weight}: the task's grader gives no part named format, "
                f"only {', '.join(sorted(score.parts))}; set it to 0"
            )
        value += config.format_weight * score.parts["format"]
    value -= config.length_penalty * length / num_slots
    if config.overlong_slots:
        inside = min(max(length - (num_slots - config.overlong_slots), 0), config.overlong_slots)
        value -= config.overlong_penalty * inside / config.overlong_slots
    return score if value == score.value else replace(score, value=value)


def shape_all(scores: Sequence[Score], trajectories: Sequence[Trajectory], config: ShapingConfig) -> list[Score]:
    """The scores of one group."""
    return [shaped(score, trajectory, config) for score, trajectory in zip(scores, trajectories, strict=True)]
