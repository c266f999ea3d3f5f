"""What a run needs beside the weights to go on as if it had never stopped.

The learner writes it into the same atomic checkpoint as the weights it belongs to, so that counters, cursor and weights
can never be of different steps.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cluster.answer_record import read_group, write_group
from cluster.buffer import Entry
from cluster.config import TrainRecipe
from cluster.cursor import CursorState, Visit
from learner import checkpoint

logger = logging.getLogger(__name__)

FIXED = ("seed", "model", "tasks", "prompts_per_step", "staleness")
"""Settings that a resumed run must share with the run it goes on with; the order of prompts depends on them."""


class RunState(BaseModel):
    """The counters of a run after a step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Policy updates done, and version of the weights."""
    cursor: CursorState
    ended: dict[str, int]
    """Prompt visits by how they ended."""
    run_id: str | None
    """The MLflow run."""
    first_evaluation: dict[str, float]
    fixed: dict[str, Any]
    """The settings in `FIXED`."""
    buffered: tuple[dict[str, Any], ...] = ()
    """Graded groups that wait for the learner, with their visits."""
    quarantined: dict[str, str] = {}
    """Rows that no worker could answer, and why."""

    @property
    def entries(self) -> list[Entry]:
        """The groups in `buffered`."""
        groups = [(record, read_group(record["group"])) for record in self.buffered]
        return [Entry(Visit(record["number"], record["epoch"], group.prompt), group) for record, group in groups]


def write_entry(entry: Entry) -> dict[str, Any]:
    """One entry of `RunState.buffered`."""
    return {"number": entry.visit.number, "epoch": entry.visit.epoch, "group": write_group(entry.group)}


def fixed_settings(recipe: TrainRecipe) -> dict[str, Any]:
    """Values of `FIXED`."""
    settings: dict[str, Any] = recipe.model_dump(mode="json", include=set(FIXED))
    return settings


def newest(folder: Path, recipe: TrainRecipe) -> tuple[Path, RunState] | None:
    """The newest whole checkpoint, if there is one that this recipe can go on with.

    A damaged one is set aside with a warning, and the one before takes its place; `CheckpointError` where none is left.
    """
    problems: list[str] = []
    for path in reversed(checkpoint.checkpoints(folder)):
        try:
            saved = checkpoint.read_state(path, verify=True)
        except checkpoint.CheckpointError as error:
            problems.append(str(error))
            aside = checkpoint.set_aside(path)
            logger.warning("%s. It is now %s; the checkpoint before it is tried", error, aside.name)
            continue
        state = RunState.model_validate(saved["run"])
        _check_same(path, state, saved, recipe)
        return path, state
    if problems:
        raise checkpoint.CheckpointError(
            f"every checkpoint in {folder} is damaged:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nStart a new run with another name, or without --resume"
        )
    return None


def _check_same(path: Path, state: RunState, saved: dict[str, Any], recipe: TrainRecipe) -> None:
    now = fixed_settings(recipe)
    if changed := [name for name in FIXED if state.fixed[name] != now[name]]:
        listed = "\n".join(f"  {name}: was {state.fixed[name]}, is {now[name]}" for name in changed)
        raise ValueError(
            f"{path} cannot be resumed with other settings, because the order of prompts depends on them:\n{listed}\n"
            "Restore them, or start a new run from its weights with another name and "
            f"--set model.path={path / 'model'}"
        )
    engine = recipe.learner.engine
    for name in ("zero_stage", "dtype"):
        if saved.get(name, getattr(engine, name)) != getattr(engine, name):
            raise ValueError(
                f"{path} was saved with learner.engine.{name} {saved[name]} and it is {getattr(engine, name)} now: "
                "optimizer state belongs to it; restore it, or start a new run from its weights with another name and "
                f"--set model.path={path / 'model'}"
            )
    if saved["world_size"] != engine.num_ranks:
        logger.warning(
            "%s was saved by %d learner ranks, this run has %d: the state is the same, sums over ranks round otherwise",
            *(path, saved["world_size"], engine.num_ranks),
        )


def commit(folder: Path, step: int, *, keep: int) -> Path:
    """Points `latest` at the checkpoint of a step and deletes what is older than the newest `keep`."""
    path = checkpoint.step_folder(folder, step)
    checkpoint.link(folder / "latest", path)
    checkpoint.prune(folder, keep=keep)
    return path
