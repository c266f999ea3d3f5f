"""What every task shares: two splits, loaded once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from reward.config import TaskConfig
from reward.tasks import Row, Split


class SplitTask(ABC):
    """Rows by split, loaded when they are first asked for."""

    name: str

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self._splits: dict[str, Sequence[Row]] = {}

    def rows(self, split: Split) -> Sequence[Row]:
        """Rows of a split, in a fixed order."""
        if split not in ("train", "test"):
            raise ValueError(f"task {self.name} has no split {split!r}; allowed: train, test")
        if split not in self._splits:
            self._splits[split] = self.load(
                split, self.config.train_file if split == "train" else self.config.test_file
            )
        return self._splits[split]

    @abstractmethod
    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the file that the recipe names for this split, or the task's own if it names none."""

    def row_id(self, split: Split, key: int | str) -> str:
        """Id of row `key` of a split."""
        return f"{self.name}/{split}/{key}"
