"""The training loop: one function, one named call per stage.

    cursor -> prompts -> rollout pool -> trajectories -> grader pool -> groups -> learner -> weights vN -> rollout pool

Step k trains on what the weights of version k - 1 - staleness or later have drawn and publishes version k. With a
staleness of 0 exactly what the next update needs is drawn; with more, the pools go on while the learner works, and
nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.buffer import GroupBuffer
from cluster.config import TrainRecipe
from cluster.cursor import Cursor
from cluster.evaluate import evaluate
from cluster.gather import Gatherer
from cluster.grader_pool import GraderPool
from cluster.learner_group import LearnerGroup, LearnerLostError
from cluster.metrics import eval_metrics
from cluster.recovery import recover, save
from cluster.rollout_pool import RolloutPool
from cluster.run_folder import RunFolder
from cluster.step_report import report_step, show_evaluation
from cluster.stop_signal import StopRequested
from cluster.stopwatch import Stopwatch
from cluster.transport import WeightTransport
from learner import checkpoint
from learner.checkpoint import step_folder
from learner.groups import training_groups
from learner.records import Sample
from reward.tasks import Task
from rollout.records import Group, Score, Scored
from rollout.request import sequence_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cluster.progress import Progress
    from cluster.tracking import Tracker


@dataclass
class TrainRun:
    """The parts of one run, and how far it is."""

    recipe: TrainRecipe
    folder: RunFolder
    tasks: Sequence[Task]
    cursor: Cursor
    buffer: GroupBuffer
    rollouts: RolloutPool
    graders: GraderPool
    gatherer: Gatherer
    learner: LearnerGroup
    transport: WeightTransport
    tokenizer: PreTrainedTokenizerBase
    tracker: Tracker
    progress: Progress
    step: int = 0
    """Updates done; also the version of the newest weights."""
    first_evaluation: dict[str, float] = field(default_factory=dict)
    last_evaluation: dict[str, float] = field(default_factory=dict)
    num_recoveries: int = 0
    """How often the learner was started anew since the last checkpoint."""
    watch: Stopwatch = field(default_factory=Stopwatch)

    def num_ended(self) -> tuple[int, ...]:
        """Counts what has ended; a run that goes on changes it."""
        return self.step, self.rollouts.num_ended, self.graders.num_ended, self.num_recoveries

    def describe(self) -> list[str]:
        """What everybody does, a line each."""
        waiting = f"step {self.step}: {len(self.buffer)} groups wait, {self.buffer.num_running} prompts are under way"
        return [waiting, *self.rollouts.describe(), *self.graders.describe(), *self.learner.describe()]


def train(run: TrainRun) -> None:
    """Does the steps that are left, with evaluations before, between and after them, and a checkpoint at the end."""
    while True:
        try:
            publish_weights(run)
            with run.learner.alongside(lambda calls: run.gatherer.turn(run.rollouts.version, calls)):
                evaluate_if_due(run)
                while run.step < run.recipe.steps:
                    train_step(run)
            return
        except LearnerLostError as lost:
            recover(run, lost)
        except StopRequested:
            save_before_stop(run)
            raise


def train_step(run: TrainRun) -> None:
    """One policy update. While the learner works, `alongside` keeps the pools busy as far as the staleness allows."""
    run.watch.lap()
    gathered = run.gatherer.step(run.step, run.watch)
    samples = with_advantages(gathered.groups, run.recipe)
    with run.watch.stage("update"):
        learned = run.learner.update(samples)
    run.buffer.commit(gathered.visits)
    run.cursor.finish(gathered.visits)
    run.step += 1
    published = publish_weights(run)
    report_step(run, gathered, {**learned, **published})
    save_if_due(run)
    evaluate_if_due(run)


def with_advantages(groups: Sequence[Group], recipe: TrainRecipe) -> list[Sample]:
    """Every graded answer with how much better it is than its group; failed ones take no part."""
    import torch

    from learner.advantage import group_advantages

    objective = recipe.learner.objective
    groups = training_groups(groups, recipe.learner.groups)
    if not groups:
        return []
    value_BG = torch.tensor([[_value(score) for score in group.scores] for group in groups])
    valid_BG = ~value_BG.isnan()
    advantage_BG = group_advantages(
        value_BG,
        valid_BG,
        kind=objective.advantage,
        min_valid=objective.min_valid,
        temperature=objective.softmax_temperature,
    )
    return [
        Sample(trajectory, float(advantage))
        for group, advantage_G in zip(groups, advantage_BG, strict=True)
        for trajectory, score, advantage in zip(group.trajectories, group.scores, advantage_G, strict=True)
        if isinstance(score, Scored)
    ]


def publish_weights(run: TrainRun) -> dict[str, float]:
    """Makes the learner's weights version `step` of the rollout workers; they serve it when this returns."""
    with run.watch.stage("publish"):
        published = run.transport.publish(run.step)
    with run.watch.stage("sync"):
        return run.rollouts.sync(published)


def evaluate_if_due(run: TrainRun) -> None:
    """Answers and grades held-out rows before the first step, after the last, and every so often between."""
    every = run.recipe.eval.every
    if run.step not in (0, run.recipe.steps) and not (every and run.step % every == 0):
        return
    metrics: dict[str, float] = {}
    for task in run.tasks:
        seed = sequence_seed(run.recipe.seed, "evaluation")
        with run.watch.stage("evaluate"):
            result = evaluate(run.rollouts.generate, run.graders.grade, task, run.recipe.eval, seed)
        metrics |= eval_metrics(result.samples)
        metrics |= {f"eval.{task.name}/accuracy_low": result.low, f"eval.{task.name}/accuracy_high": result.high}
        show_evaluation(run, result)
    run.tracker.log(run.step, metrics)
    run.last_evaluation = metrics
    if run.step == 0:
        run.first_evaluation = metrics


def save_if_due(run: TrainRun) -> None:
    """Writes a checkpoint every so often and after the last step."""
    every = run.recipe.checkpoint.every
    if run.step != run.recipe.steps and not (every and run.step % every == 0):
        return
    run.watch.lap()
    with run.watch.stage("checkpoint"):
        save(run)
    run.tracker.log(run.step, {"time/checkpoint_s": run.watch.lap()["step"]})


def save_before_stop(run: TrainRun) -> None:
    """A checkpoint of the last whole step, unless there is one; the run was told to stop."""
    if run.step > 0 and checkpoint.latest(run.folder.checkpoints) != step_folder(run.folder.checkpoints, run.step):
        save(run)


def _value(score: Score) -> float:
    """A failed grading has no value: nan, which is masked out before anything is computed."""
    return score.value if isinstance(score, Scored) else float("nan")
