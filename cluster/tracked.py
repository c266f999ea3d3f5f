"""The record of a run from its beginning to its end, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.run_note import Recipe
from cluster.tracking import Status, Tracker


@contextmanager
def tracked(
    recipe: Recipe, run_dir: Path, run_id: str | None, *, at_end: Callable[[Tracker], Path | None]
) -> Iterator[Tracker]:
    """A tracker of a new run, or of the MLflow run `run_id`, closed with how the run ended.

    `at_end` is called before that: it adds what belongs to the end and gives the run's checkpoint, if there is one.
    """
    tracker = Tracker.start(recipe, run_dir, resume_run_id=run_id)
    status: Status = "failed"
    try:
        yield tracker
        status = "finished"
    except (KeyboardInterrupt, SystemExit):
        status = "killed"
        raise
    finally:
        tracker.finish(status, checkpoint=at_end(tracker))
