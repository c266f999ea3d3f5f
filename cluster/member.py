"""One worker of a pool, and the work it has."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cluster.calls import Future, Handle
from cluster.places import Place

Item = TypeVar("Item")


@dataclass(frozen=True)
class Work(Generic[Item]):
    """Items that travel in one call."""

    items: tuple[Item, ...]
    num_tries: int = 0
    started: float = 0.0
    was_reissued: bool = False
    """Whether another worker has been given the very same items."""


@dataclass
class Member(Generic[Item]):
    """One worker of a pool."""

    handle: Handle
    place: Place | None = None
    """What it has reserved, if anything."""
    preparation: list[Future] = field(default_factory=list)
    """Calls that have to go well before it is ready."""
    since: float = 0.0
    """When the preparation began."""
    is_new: bool = True
    """Whether its process has not been ready yet."""
    is_stranded: bool = False
    """Whether it has no machine: the preparation is the wait for one."""
    call: tuple[Future, Work[Item]] | None = None
    num_restarts: int = 0
    is_gone: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether it may be given work, now or after its call."""
        return not self.is_gone and not self.preparation

    @property
    def futures(self) -> list[Future]:
        """What it is doing."""
        return [*self.preparation[-1:], *([self.call[0]] if self.call else [])]

    def describe(self) -> str:
        """A line for a person who wonders what it does."""
        now = time.monotonic()
        if self.is_gone:
            state = "gone for good"
        elif self.call:
            future, work = self.call
            state = f"works on {len(work.items)} items for {now - work.started:.0f} s, ended: {future.is_done()}"
        elif self.is_stranded:
            state = f"waits for a machine for {now - self.since:.0f} s"
        elif self.preparation:
            state = f"prepares itself for {now - self.since:.0f} s"
        else:
            state = "has nothing to do"
        return f"{self.handle.name} {state} (restarts: {self.num_restarts})"
