"""A supervised run from recipe to summary: examples, masks, updates, evaluations, checkpoints.

Which rows a step trains on and which slots are masked follow from (seed, step) alone (and, for attention-guided masks,
from the weights), so a resumed run goes on as if it had never stopped. An evaluation saves a checkpoint and measures
what was saved, in this process: the loss on held-out rows with random masks that never change, whatever masks are
trained on, and the share of them that the model answers right. `checkpoints/best` points at the best one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.actors import Launcher
from cluster.bundles import learner_need
from cluster.config import SftRecipe
from cluster.errors import RunError
from cluster.evaluate import evaluate
from cluster.learner_group import LearnerGroup
from cluster.logs import log_file
from cluster.metrics import eval_metrics
from cluster.placement import Placement, reserve
from cluster.progress import Progress
from cluster.ray_start import ray_session
from cluster.run_folder import RunFolder, open_run_folder
from cluster.sft_data import Examples
from cluster.tracked import tracked
from cluster.tracking import Tracker, read_metrics, saved_run_id
from learner import checkpoint
from learner.agdo_sft import agdo_canvases, finished_texts, mean_statistics
from learner.masking import blockwise_canvases, random_canvases
from learner.sft import MaskedExample, SftExample
from learner.sft_config import AgdoMasking, BlockwiseMasking, RandomMasking
from learner.worker import NEW_TINY
from models import Denoiser, create_tiny, load
from models.config import ModelConfig
from reward.worker import GraderWorker
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt, Trajectory
from rollout.worker import RolloutWorker

logger = logging.getLogger(__name__)

REPORT_S = 5.0
"""Least time between two lines of progress: steps of a small model are short."""
HELD_OUT_STEP = 2**31
"""Masks of the held-out loss are drawn as if for this step: the same ones at every evaluation."""
LOSS, ACCURACY = "eval/loss", "eval/accuracy"


@dataclass(frozen=True, slots=True)
class SftSummary:
    """What a run has done."""

    run_dir: str
    steps: int
    first: dict[str, float]
    """Metrics of the first evaluation, before any update."""
    last: dict[str, float]
    best: dict[str, float]
    best_step: int
    checkpoint: str
    """Model folder of the best evaluation, in the published layout."""


@dataclass
class SftRun:
    """The parts of one run, and how far it is."""

    recipe: SftRecipe
    folder: RunFolder
    examples: Examples
    held_out: list[MaskedExample]
    learner: LearnerGroup
    tracker: Tracker
    progress: Progress
    step: int = 0
    """Updates done."""
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of each evaluation by step."""

    @property
    def best_step(self) -> int:
        """Step of the evaluation with the most right answers; of equal ones, that with the lowest loss.

        By the loss alone where there are no tasks, or where `sft.select_by` says so. The model before any update counts
        only as long as there is no other.
        """
        by_loss = self.recipe.sft.select_by == "loss" or not self.recipe.tasks

        def quality(step: int) -> tuple[bool, float, float]:
            metrics = self.evaluations[step]
            return step > 0, 0.0 if by_loss else metrics[ACCURACY], -metrics[LOSS]

        return max(self.evaluations, key=quality)


def run_sft(recipe: SftRecipe, *, resume: bool = False) -> SftSummary:
    """Trains as the recipe says; with `resume` from the newest checkpoint of the newest run of this name."""
    if recipe.cluster.mode == "local" and recipe.learner.engine.num_ranks > 1:
        raise ValueError(
            f"learner.engine.num_ranks is {recipe.learner.engine.num_ranks} with cluster.mode local, which is one "
            "process; set num_ranks to 1, or cluster.mode to ray"
        )
    examples = Examples(recipe, _without_weights(recipe))
    folder = open_run_folder(recipe, resume=resume)
    with log_file(folder.log_dir, "driver"), ExitStack() as stack:
        run = assemble(recipe, folder, examples, checkpoint.latest(folder.checkpoints) if resume else None, stack)
        fine_tune(run)
        return _summary(run)


def fine_tune(run: SftRun) -> None:
    """Does the steps that are left, with evaluations before, between and after them."""
    reported_at = 0.0
    if run.step not in run.evaluations:
        evaluate_model(run, _present_model(run))
    while run.step < run.recipe.sft.steps:
        metrics = train_step(run)
        run.tracker.log(run.step, metrics)
        if time.monotonic() - reported_at >= REPORT_S or run.step == run.recipe.sft.steps:
            reported_at = time.monotonic()
            run.progress.step(run.step, metrics)
        evaluates = _is_due(run, run.recipe.sft.eval_every)
        if evaluates or _is_due(run, run.recipe.checkpoint.every):
            path = save(run)
        if evaluates:
            evaluate_model(run, path / "model")


def train_step(run: SftRun) -> dict[str, float]:
    """One update with its time and speed."""
    started = time.perf_counter()
    masked, found = draw_masks(run, run.examples.batch(run.step))
    learned = run.learner.sft_step(masked) | found
    run.step += 1
    seconds = time.perf_counter() - started
    num_tokens = sum(one.example.num_tokens * len(one.canvases) for one in masked)
    learned["tokens_per_s"] = num_tokens / seconds
    learned["num_canvases"] = sum(len(one.canvases) for one in masked) / len(masked)
    learned["num_scored"] = sum(one.num_scored for one in masked) / len(masked)
    return {**{f"sft/{name}": value for name, value in learned.items()}, "time/step_s": seconds}


def draw_masks(run: SftRun, examples: Sequence[SftExample]) -> tuple[list[MaskedExample], dict[str, float]]:
    """Masked canvases of a batch, and what there is to tell about them."""
    masking, seed = run.recipe.sft.masking, run.recipe.seed
    match masking:
        case RandomMasking():
            return random_canvases(examples, masking, seed=seed, step=run.step), {}
        case BlockwiseMasking():
            return blockwise_canvases(examples, masking, seed=seed, step=run.step), {}
        case AgdoMasking():
            guides = run.learner.sft_guides(finished_texts(examples, masking), masking)
            masked = agdo_canvases(examples, guides, masking, seed=seed, step=run.step)
            return masked, mean_statistics(guides)


def save(run: SftRun) -> Path:
    """Writes a checkpoint of the present step; the newest ones and the best one stay."""
    folder = run.folder.checkpoints
    path = checkpoint.step_folder(folder, run.step)
    if problem := run.learner.save(str(path), {"run": {"step": run.step}}):
        raise RunError(f"the checkpoint of step {run.step} could not be written: {problem}; make room, then --resume")
    checkpoint.link(folder / "latest", path)
    best = checkpoint.step_folder(folder, run.best_step) if run.evaluations else None
    checkpoint.prune(folder, keep=run.recipe.checkpoint.keep, spare=best)
    return path


def evaluate_model(run: SftRun, model: Path | str) -> None:
    """Held-out loss, and answers by the saved model to the held-out rows of every task."""
    metrics = {LOSS: run.learner.sft_evaluate(run.held_out)["loss"]}
    note = f"step {run.step}: held-out loss {metrics[LOSS]:.4f}"
    if run.examples.tasks:
        accuracies = _answer_tasks(run, model, metrics)
        metrics[ACCURACY] = sum(accuracies.values()) / len(accuracies)
        note += ", right answers: " + "  ".join(f"{task} {share:.1%}" for task, share in accuracies.items())
    run.tracker.log(run.step, metrics)
    run.evaluations[run.step] = metrics
    run.progress.note(note)
    saved = checkpoint.step_folder(run.folder.checkpoints, run.step)
    if run.best_step == run.step and saved.exists():
        checkpoint.link(run.folder.checkpoints / "best", saved)


def _answer_tasks(run: SftRun, model: Path | str, metrics: dict[str, float]) -> dict[str, float]:
    """Share of right answers by task, given by the saved model in this process; their numbers go to `metrics`."""
    recipe = run.recipe
    worker = RolloutWorker(
        ModelConfig(path=str(model), dtype=recipe.model.dtype),
        RolloutConfig(max_batch_tokens=recipe.learner.engine.micro_batch_tokens),
    )
    worker.load()

    def generate(
        prompts: list[Prompt], num_samples: int, seed: int, decoding: DecodingConfig
    ) -> list[list[Trajectory]]:
        return worker.generate(prompts, num_samples=num_samples, seed=seed, decoding=decoding)

    accuracies = {}
    with contextlib.closing(GraderWorker(recipe.tasks)) as grader:
        grader.prove()
        for task in run.examples.tasks:
            result = evaluate(generate, grader.grade, task, recipe.eval, recipe.seed)
            metrics |= eval_metrics(result.samples)
            accuracies[task.name] = result.accuracy
    return accuracies


def _held_out(recipe: SftRecipe, examples: Examples) -> list[MaskedExample]:
    """Held-out examples with the same random masks at every evaluation and in every run of this seed."""
    masking = recipe.sft.masking if isinstance(recipe.sft.masking, RandomMasking) else RandomMasking()
    fixed = RandomMasking(t_min=masking.t_min, num_canvases=recipe.sft.held_out_canvases)
    return random_canvases(examples.held_out(), fixed, seed=recipe.seed, step=HELD_OUT_STEP)


def assemble(recipe: SftRecipe, folder: RunFolder, examples: Examples, newest: Path | None, stack: ExitStack) -> SftRun:
    """Starts the learner and brings it to where the checkpoint left off; the stack stops it again."""
    progress = stack.enter_context(Progress(recipe.sft.steps, title=folder.path.name))
    progress.note(f"starting; run folder {folder.path}")
    stack.enter_context(ray_session(recipe.cluster))
    launcher = Launcher(mode=recipe.cluster.mode, log_dir=folder.log_dir)
    placement = stack.enter_context(_placement(recipe))
    learner = stack.enter_context(closing(LearnerGroup(recipe, launcher=launcher, placement=placement)))
    logger.info("learner: %s", learner.start())
    step = 0
    if newest is not None:
        step = int(learner.load(str(newest))["run"]["step"])
        progress.note(f"resumed from {newest}")
    return SftRun(
        recipe=recipe,
        folder=folder,
        examples=examples,
        held_out=_held_out(recipe, examples),
        learner=learner,
        tracker=stack.enter_context(
            tracked(recipe, folder.path, saved_run_id(folder.path), at_end=lambda _: _best(folder))
        ),
        progress=progress,
        step=step,
        evaluations={int(row["step"]): row for row in read_metrics(folder.path) if LOSS in row and row["step"] <= step},
    )


def _without_weights(recipe: SftRecipe) -> Denoiser:
    """The model's tokenizer and special tokens; the weights belong to the learner."""
    path = recipe.model.path
    return create_tiny(recipe.seed) if path == NEW_TINY else load(path, device="meta")


def _present_model(run: SftRun) -> Path | str:
    """Where the weights of the present step lie: a model that came from nothing is saved first."""
    if run.step == 0 and run.recipe.model.path != NEW_TINY:
        return run.recipe.model.path
    path = checkpoint.step_folder(run.folder.checkpoints, run.step)
    return (path if path.exists() else save(run)) / "model"


def _is_due(run: SftRun, every: int) -> bool:
    return run.step == run.recipe.sft.steps or (every > 0 and run.step % every == 0)


@contextmanager
def _placement(recipe: SftRecipe) -> Iterator[Placement]:
    if recipe.cluster.mode == "local":
        yield Placement()
        return
    with reserve(recipe.name, [learner_need(recipe)], timeout_s=recipe.cluster.placement_timeout_s) as placement:
        yield placement


def _best(folder: RunFolder) -> Path | None:
    best = folder.checkpoints / "best" / "model"
    return best if best.exists() else None


def _summary(run: SftRun) -> SftSummary:
    def shown(step: int) -> dict[str, float]:
        metrics = run.evaluations[step]
        return {name: value for name, value in metrics.items() if name == LOSS or name.endswith("/accuracy")}

    return SftSummary(
        run_dir=str(run.folder.path),
        steps=run.step,
        first=shown(min(run.evaluations)),
        last=shown(max(run.evaluations)),
        best=shown(run.best_step),
        best_step=run.best_step,
        checkpoint=str(run.folder.checkpoints / "best" / "model"),
    )
