"""The order in which prompts are visited, and which visits are done.

A visit is one use of one task row: row `arithmetic/train/0/17` in epoch 2 is the visit `arithmetic/train/0/17#2`, the
key of its group. Visits are numbered 0, 1, 2, ...; number and seed alone decide task, row and epoch, so any process
that knows both draws the same prompts. Tasks take turns by weight, as evenly as whole visits allow; inside a task
every epoch is a fresh permutation of all its rows.

State: the lowest visit that is not done (`frontier`) and the done ones above it. Visits that were drawn but not done
when the state was saved are drawn again after it is loaded; none is lost and none is done twice.

    weights 2 : 1 over tasks a (3 rows), b (2 rows):   a a b a a b a a b ...
    epoch of a's fourth visit: 1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollout.records import Prompt
from rollout.request import sequence_seed


class PromptSource(Protocol):
    """What the cursor needs of a task."""

    name: str

    def rows(self, split: Any) -> Sequence[Mapping[str, Any]]:
        """Rows of a split, in a fixed order."""

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        """The prompt of a row."""


class CursorState(BaseModel):
    """What a checkpoint keeps of the cursor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frontier: int = Field(default=0, ge=0)
    """Every visit below is done."""
    done_above: tuple[int, ...] = ()
    """Done visits above the frontier, ascending."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One prompt at one place in the order; `prompt.id` is the group key."""

    number: int
    epoch: int
    prompt: Prompt


class Cursor:
    """Draws visits in order and remembers which are done."""

    def __init__(self, tasks: Sequence[PromptSource], weights: Sequence[float], *, seed: int) -> None:
        if len(tasks) != len(weights) or not tasks:
            raise ValueError(f"{len(tasks)} tasks but {len(weights)} weights; give one weight for each of >= 1 tasks")
        self._tasks = tasks
        self._weights = weights
        self._seed = seed
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._held: set[int] = set()
        self._rewind(CursorState())

    @property
    def frontier(self) -> int:
        """Lowest visit that is not done."""
        return self._frontier

    def draw(self, num_visits: int) -> list[Visit]:
        """The next visits that are not done, each once."""
        visits: list[Visit] = []
        while len(visits) < num_visits:
            number = self._next
            task_index, turn = self._take_turn()
            if number >= self._frontier and number not in self._done and number not in self._held:
                visits.append(self._visit(number, task_index, turn))
        return visits

    def finish(self, numbers: Iterable[int]) -> None:
        """Marks visits as done: trained, dropped or given up. They are not drawn again, whatever happens."""
        for number in numbers:
            was_drawn = number < self._next or number in self._held
            if not was_drawn or number < self._frontier or number in self._done:
                raise ValueError(f"visit {number} was not drawn or is done already")
            self._held.discard(number)
            self._done.add(number)
        while self._frontier in self._done:
            self._done.remove(self._frontier)
            self._frontier += 1

    def state(self) -> CursorState:
        """What a checkpoint keeps."""
        return CursorState(frontier=self._frontier, done_above=tuple(sorted(self._done)))

    def load(self, state: CursorState, held: Iterable[int] = ()) -> None:
        """Goes on after a saved state; what was drawn but not done then comes next, the visits `held` left out.

        Those count as drawn: their groups were saved with the state.
        """
        self._rewind(state)
        self._held = set(held)

    def _rewind(self, state: CursorState) -> None:
        self._frontier = state.frontier
        self._done = set(state.done_above)
        self._held = set()
        self._next = 0
        self._turns = [0] * len(self._tasks)
        while self._next < self._frontier:
            self._take_turn()

    def _take_turn(self) -> tuple[int, int]:
        """Task of the next visit and how many visits it had before: the one whose next turn is due first."""
        due = [(turns + 1) / weight for turns, weight in zip(self._turns, self._weights, strict=True)]
        task_index = due.index(min(due))
        turn = self._turns[task_index]
        self._turns[task_index] += 1
        self._next += 1
        return task_index, turn

    def _visit(self, number: int, task_index: int, turn: int) -> Visit:
        task = self._tasks[task_index]
        rows = task.rows("train")
        epoch, place = divmod(turn, len(rows))
        row = rows[int(self._order(task_index, epoch, len(rows))[place])]
        prompt = task.prompt(row)
        return Visit(number, epoch, replace(prompt, id=f"{prompt.id}#{epoch}"))

    def _order(self, task_index: int, epoch: int, num_rows: int) -> np.ndarray:
        key = (task_index, epoch)
        if key not in self._orders:
            seed = sequence_seed(self._seed, "order", self._tasks[task_index].name, epoch)
            # Only the epoch in use is kept: a permutation of millions of rows is made again sooner than stored.
            self._orders = {kept: order for kept, order in self._orders.items() if kept[0] != task_index}
            self._orders[key] = np.random.default_rng(seed).permutation(num_rows)
        return self._orders[key]
