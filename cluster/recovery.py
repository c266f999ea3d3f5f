"""A run's state to and from checkpoints, and the way back after the learner was lost.

The learner's processes hold the only copy of weights and optimizer, so when one of them dies the run goes back to its
last checkpoint: new ranks load it, cursor and buffer return to it, answers under way are thrown away, and the weights
are published before anything else. Prompts that were trained since are drawn again in the same order with the same
seeds: in a synchronous run the steps are repeated bit for bit, and every prompt counts once in the weights.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.checkpointing import RunState, commit, fixed_settings, newest, write_entry
from cluster.cursor import CursorState
from cluster.errors import RunError
from cluster.learner_group import LearnerLostError
from learner import checkpoint

if TYPE_CHECKING:
    from cluster.loop import TrainRun

logger = logging.getLogger(__name__)

ROOM = 1.1
"""Free space that a checkpoint needs, as a multiple of the one before it."""


def capture(run: TrainRun) -> RunState:
    """Everything beside the weights that the run would need to go on from here."""
    return RunState(
        step=run.step,
        cursor=run.cursor.state(),
        ended=run.buffer.ended,
        run_id=run.tracker.run_id,
        first_evaluation=run.first_evaluation,
        fixed=fixed_settings(run.recipe),
        buffered=tuple(write_entry(entry) for entry in run.buffer.entries),
        quarantined=run.gatherer.quarantined,
    )


def restore(run: TrainRun, found: tuple[Path, RunState] | None) -> None:
    """Brings everything to a checkpoint, or to the beginning where there is none."""
    if found is None:
        run.step = 0
        run.cursor.load(CursorState())
        run.buffer.load({}, ())
        return
    path, state = found
    run.learner.load(str(path))
    run.step = state.step
    run.first_evaluation = dict(state.first_evaluation)
    run.cursor.load(state.cursor, held=[entry.visit.number for entry in state.entries])
    run.buffer.load(state.ended, state.entries)
    run.gatherer.quarantined = dict(state.quarantined)


def save(run: TrainRun) -> None:
    """A checkpoint of the present step; where the disk has no room it is skipped and counted, unless it is the last.

    The checkpoint before it stays, so a full disk costs the steps since then and never a half-written state.
    """
    folder = run.folder.checkpoints
    path = checkpoint.step_folder(folder, run.step)
    problem = _lacks_room(folder)
    if not problem:
        problem = run.learner.save(str(path), {"run": capture(run).model_dump(mode="json")})
    if not problem:
        commit(folder, run.step, keep=run.recipe.checkpoint.keep)
        run.num_recoveries = 0
        run.progress.note(f"checkpoint: {path}")
        return
    if run.step == run.recipe.steps:
        raise RunError(
            f"the last checkpoint could not be written to {folder}: {problem}\n"
            "Make room and go on with --resume; it repeats the steps since the checkpoint before"
        )
    run.gatherer.note_failure("checkpoint")
    logger.error("no checkpoint of step %d: %s; training goes on and tries again", run.step, problem)


def recover(run: TrainRun, lost: LearnerLostError) -> None:
    """New learner processes, and everything back to the last checkpoint; gives up when that does not help."""
    limit, step, is_back = run.recipe.cluster.max_learner_restarts, run.step, False
    run.gatherer.abandon()
    while not is_back:
        run.gatherer.note_failure(f"learner_{lost.failure.kind}")
        if run.num_recoveries >= limit:
            raise RunError(f"{lost}\nThe learner was lost {limit + 1} times without a checkpoint in between") from lost
        run.num_recoveries += 1
        logger.error("the learner is started anew: %s", lost.failure.headline)
        try:
            run.learner.restart()
            restore(run, newest(run.folder.checkpoints, run.recipe))
            is_back = True
        except LearnerLostError as again:
            lost = again
    run.transport.forget()
    run.progress.note(f"the learner was lost at step {step}; the run goes on from step {run.step}")


def _lacks_room(folder: Path) -> str:
    before = checkpoint.latest(folder)
    if before is None:
        return ""
    needed = int(ROOM * sum(file.stat().st_size for file in before.rglob("*") if file.is_file()))
    free = shutil.disk_usage(folder).free
    return "" if free >= needed else f"the disk has {free:,} bytes left and a checkpoint takes {needed:,}"
