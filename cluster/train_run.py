"""A training run from recipe to summary: checks, actors, loop, record.

Everything that can be known to be wrong is refused before the run's folder is made and before any actor starts. What is
started here is stopped here, however the run ends; the record in MLflow says how it ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.actors import Launcher
from cluster.buffer import GroupBuffer
from cluster.bundles import rollout_need, train_needs
from cluster.checkpointing import RunState, newest
from cluster.config import TrainRecipe
from cluster.cursor import Cursor
from cluster.gather import Gatherer
from cluster.grader_pool import GraderPool
from cluster.learner_group import LearnerGroup
from cluster.logs import log_file
from cluster.loop import TrainRun, train
from cluster.memory import BYTES
from cluster.placement import Placement, check_store, reserve
from cluster.places import Growth
from cluster.preflight import check_all
from cluster.progress import Progress
from cluster.ray_start import ray_session
from cluster.recipe import Loaded
from cluster.recovery import restore
from cluster.rollout_pool import RolloutPool
from cluster.run_folder import RunFolder, open_run_folder
from cluster.spans import SpanFile
from cluster.stop_signal import StopSignal
from cluster.stopwatch import Stopwatch
from cluster.timeline import DRIVER, write_trace
from cluster.tracked import tracked
from cluster.tracking import Tracker
from cluster.transport import ObjectStoreTransport, WeightTransport
from cluster.watchdog import watch
from learner import checkpoint
from learner.worker import LearnerRank
from models.source import resolve
from models.tokenizer import load_tokenizer
from reward.tasks import Task, build
from rollout.worker import RolloutWorker

logger = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 64 * 2**20
"""Checkpoints up to this size are copied to MLflow; of larger ones the record holds the path."""


@dataclass(frozen=True)
class TrainSummary:
    """What a run has come to."""

    run_dir: Path
    steps_done: int
    first: Mapping[str, float]
    """Metrics of the evaluation before the first step."""
    last: Mapping[str, float]
    """Metrics of the newest evaluation."""
    checkpoint: Path | None
    """Newest checkpoint; its `model` folder is what `--model` reads."""
    run_id: str | None
    uri: str
    """The MLflow run and its store."""


@dataclass(frozen=True)
class Engines:
    """What computes: the classes of rollout workers and learner ranks."""

    worker: Callable[..., Any] = RolloutWorker
    rank: Callable[..., Any] = LearnerRank


def run_train(recipe: TrainRecipe, *, resume: bool = False, engines: Engines | None = None) -> TrainSummary:
    """Trains as the recipe says; with `resume` from the newest checkpoint of the newest run of this name."""
    check(recipe)
    tasks = [build(config) for config in recipe.tasks]
    folder = open_run_folder(recipe, resume=resume)
    start = newest(folder.checkpoints, recipe) if resume else None
    with log_file(folder.log_dir, "driver"), ExitStack() as stack:
        run = assemble(recipe, folder, tasks, start, stack, engines or Engines())
        with watch(run.num_ended, run.describe, timeout_s=recipe.cluster.stall_timeout_s, folder=folder.log_dir):
            train(run)
        return _summary(run)


def check(recipe: TrainRecipe) -> None:
    """Raises ValueError for whatever is wrong with the recipe, the machine, the model or the tasks."""
    check_all(Loaded(recipe, Path(), frozenset(), frozenset()))
    if recipe.cluster.mode == "local" and recipe.learner.engine.num_ranks > 1:
        raise ValueError(
            f"learner.engine.num_ranks is {recipe.learner.engine.num_ranks} with cluster.mode local, which is one "
            "process; set num_ranks to 1, or cluster.mode to ray"
        )


def assemble(
    recipe: TrainRecipe,
    folder: RunFolder,
    tasks: list[Task],
    start: tuple[Path, RunState] | None,
    stack: ExitStack,
    engines: Engines,
) -> TrainRun:
    """Starts everything and brings it to where the checkpoint left off; the stack stops it again."""
    progress = stack.enter_context(Progress(recipe.steps, title=folder.path.name))
    progress.note(f"run folder: {folder.path}")
    stack.enter_context(ray_session(recipe.cluster))
    stop = stack.enter_context(StopSignal())
    _warn_of_temporary_folder(recipe)
    learner, transport, rollouts, graders = _start_actors(recipe, folder, stack, engines)
    cursor = Cursor(tasks, [config.weight for config in recipe.tasks], seed=recipe.seed)
    buffer = _buffer(recipe)
    pools: dict[str, Any] = {"rollouts": rollouts, "graders": graders}
    gatherer = Gatherer(recipe, cursor=cursor, buffer=buffer, interrupt=stop.check, **pools)
    tokenizer = load_tokenizer(resolve(recipe.model.path))
    assert tokenizer is not None, "the check has read prompts with it"
    run_id = start[1].run_id if start else None
    tracker = stack.enter_context(tracked(recipe, folder.path, run_id, at_end=lambda record: _at_end(folder, record)))
    tracker.tag(graders.metadata)
    run = TrainRun(
        recipe=recipe,
        folder=folder,
        tasks=tasks,
        cursor=cursor,
        buffer=buffer,
        gatherer=gatherer,
        learner=learner,
        transport=transport,
        tokenizer=tokenizer,
        tracker=tracker,
        progress=progress,
        watch=Stopwatch(SpanFile(folder.log_dir, DRIVER)),
        **pools,
    )
    if start is not None:
        restore(run, start)
        progress.note(f"resumed from {start[0]}")
    return run


def _start_actors(
    recipe: TrainRecipe, folder: RunFolder, stack: ExitStack, engines: Engines
) -> tuple[LearnerGroup, WeightTransport, RolloutPool, GraderPool]:
    """All actors, loading at the same time; returns when every one is ready."""
    common: dict[str, Any] = {
        "launcher": Launcher(mode=recipe.cluster.mode, log_dir=folder.log_dir),
        "placement": stack.enter_context(_placement(recipe)),
    }
    learner = stack.enter_context(closing(LearnerGroup(recipe, rank=engines.rank, **common)))
    common["start_timeout_s"] = recipe.cluster.start_timeout_s
    transport = ObjectStoreTransport(learner)
    growth = None
    if recipe.rollout.max_workers is not None and recipe.cluster.mode == "ray":
        growth = stack.enter_context(closing(Growth(recipe.name, rollout_need(recipe).resources)))
    pool = RolloutPool(
        recipe.model, recipe.rollout, transport=transport, worker=engines.worker, growth=growth, **common
    )
    rollouts = stack.enter_context(closing(pool))
    graders = stack.enter_context(closing(GraderPool(recipe.tasks, recipe.reward, **common)))
    rollouts.begin()
    graders.begin()
    description = learner.start()
    logger.info("learner: %s", description)
    if recipe.cluster.mode == "ray":
        check_store(description["num_trained_parameters"] * BYTES[recipe.learner.engine.dtype])
    graders.start()
    rollouts.start()
    return learner, transport, rollouts, graders


def _warn_of_temporary_folder(recipe: TrainRecipe) -> None:
    """A job's working directory is Ray's, and goes when the job is forgotten."""
    if recipe.cluster.mode == "local" or Path(recipe.runs_dir).is_absolute():
        return
    if "working_dir" in ray.get_runtime_context().runtime_env:
        logger.warning(
            "runs_dir %r is relative, so that the run lies in this job's temporary copy of the working directory; "
            "give an absolute folder that outlives the job and that all nodes see: --set runs_dir=/shared/runs",
            recipe.runs_dir,
        )


def _buffer(recipe: TrainRecipe) -> GroupBuffer:
    return GroupBuffer(
        groups_per_step=recipe.prompts_per_step,
        staleness=recipe.staleness,
        max_in_flight=recipe.max_in_flight or (recipe.staleness + 1) * recipe.prompts_per_step,
        max_bytes=recipe.max_buffer_bytes,
    )


@contextmanager
def _placement(recipe: TrainRecipe) -> Iterator[Placement]:
    if recipe.cluster.mode == "local":
        yield Placement()
        return
    cluster = recipe.cluster
    with reserve(
        recipe.name, train_needs(recipe), timeout_s=cluster.placement_timeout_s, kind=cluster.placement
    ) as placement:
        yield placement


def _at_end(folder: RunFolder, tracker: Tracker) -> Path | None:
    """What is added to the record at the end; the newest checkpoint."""
    _save_timeline(folder, tracker)
    saved = checkpoint.latest(folder.checkpoints)
    if saved is None:
        return None
    if _size(saved / "model") <= MAX_UPLOAD_BYTES:
        tracker.artifact(saved / "model", "checkpoint")
    return saved / "model"


def _save_timeline(folder: RunFolder, tracker: Tracker) -> None:
    try:
        path = write_trace(folder.path)
    except OSError as error:  # nothing else depends on it
        logger.warning("the timeline could not be written: %s", error)
    else:
        if path.stat().st_size <= MAX_UPLOAD_BYTES:
            tracker.artifact(path, "timeline")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _summary(run: TrainRun) -> TrainSummary:
    return TrainSummary(
        run_dir=run.folder.path,
        steps_done=run.step,
        first=run.first_evaluation,
        last=run.last_evaluation,
        checkpoint=checkpoint.latest(run.folder.checkpoints),
        run_id=run.tracker.run_id,
        uri=run.tracker.uri,
    )
