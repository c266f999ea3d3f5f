"""Tasks whose training rows are made from a seed, one row at a time.

Row i of a training split depends on the task, the seed and i only (and on `test_file`, whose rows it avoids): a split
of millions costs nothing until its rows are read, and any process that knows the seed has the same rows. A file in the
task's format replaces either split.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

from reward.splits import SplitTask
from reward.tasks import Row, Split


class GeneratedRows(Sequence[Row]):
    """`length` rows, each made by `make(index)` when it is read."""

    def __init__(self, make: Callable[[int], Row], length: int) -> None:
        self._make = make
        self._length = length

    def __len__(self) -> int:
        """Rows of the split."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        """Row `index`, counted from the end if negative; a slice gives a tuple of rows."""
        if isinstance(index, slice):
            return tuple(self._make(i) for i in range(*index.indices(self._length)))
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:
            raise IndexError(f"row {index} of {self._length}")
        return self._make(position)


class GeneratedTask(SplitTask):
    """The two splits of a task that generates its training rows; the rest is the task's own."""

    version = 1
    """Raised when the same seed begins to give other rows."""

    @abstractmethod
    def read(self, path: Path | str, split: Split) -> Sequence[Row]:
        """Checked rows of a file in the task's published format."""

    @abstractmethod
    def own_test_rows(self) -> Sequence[Row]:
        """The held-out rows that come with the package."""

    @abstractmethod
    def generate(self, random_source: random.Random) -> dict[str, Any]:
        """The fields of one training row, without its id; never a held-out one."""

    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the file; else generated training rows, or the package's own test rows."""
        if path is not None:
            return self.read(path, split)
        return self.own_test_rows() if split == "test" else GeneratedRows(self._train_row, self.config.num_train_rows)

    def _train_row(self, index: int) -> Row:
        key = f"{self.config.seed}/{index}"
        source = random.Random(f"{self.name}/{self.version}/{key}")
        return {"id": self.row_id("train", key), **self.generate(source)}
