"""Groups between the pools and the learner: the one owner of how many prompts may be under way.

Life of a visit:   drawn -> running -> buffered -> reserved -> trained
                              |           |-> returned   (too old: drawn again)
                              |-> dropped, failed        (too few graded answers; no answer after the last retry)

`reserve` hands the groups of one step to the learner, `commit` says that the update has taken them, `release` that it
did not. Capacity (AReaL's rule, written so that nothing leaks): with `version` weights published so far,

    free = min(max_in_flight - running,
               (staleness + version + 1) * groups_per_step - (trained + reserved + buffered + running))

A visit that ends without being trained leaves its place to another. With `staleness` 0 exactly the groups of one step
are drawn per version: synchronous training is a setting of the same path. At all times

    drawn = trained + dropped + failed + running + buffered + reserved

The rule bounds how far drawing runs ahead, not a straggler: a group whose first answer is more than `staleness`
versions old when the learner would take it is never trained; `expire` gives its visit back. Groups are handed out in
the order of their visits among those that are there, so that one seed gives one batch in a synchronous run.

A plain object of the controller, no actor: the controller looks at every group anyway (advantages, tables), and what is
buffered is part of each checkpoint, so a process of its own would only be one more that can die.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cluster.cursor import Visit
from rollout.records import Group

ENDS = ("trained", "dropped", "failed")
"""How a visit can end."""


@dataclass(frozen=True)
class Entry:
    """A graded group that waits for the learner."""

    visit: Visit
    group: Group

    @cached_property
    def version(self) -> int:
        """Oldest weights that any of its answers was drawn with."""
        return min((answer.weights_version[0] for answer in self.group.trajectories), default=0)


class GroupBuffer:
    """Counts visits from draw to end, and holds the groups that wait for the learner."""

    def __init__(
        self,
        *,
        groups_per_step: int,
        staleness: int,
        max_in_flight: int,
        max_bytes: int | None = None,
        ended: Mapping[str, int] | None = None,
    ) -> None:
        """`ended` holds the visits that ended before a resume: `trained`, `dropped`, `failed`.

        Nothing is drawn while the waiting groups take more than `max_bytes`, unless a step still lacks some.
        """
        if min(groups_per_step, max_in_flight) < 1 or staleness < 0:
            raise ValueError(
                f"groups_per_step {groups_per_step} and max_in_flight {max_in_flight} must be at least 1, "
                f"staleness {staleness} at least 0"
            )
        self._groups_per_step = groups_per_step
        self._staleness = staleness
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes
        self.load(ended or {}, ())

    def load(self, ended: Mapping[str, int], entries: Iterable[Entry]) -> None:
        """Starts anew with the counters and the waiting groups of a checkpoint."""
        self._running: set[int] = set()
        self._buffered = {entry.visit.number: entry for entry in entries}
        self._reserved: dict[int, Entry] = {}
        self.counts = {name: 0 for name in ENDS} | dict(ended)
        self.counts["drawn"] = sum(self.counts[name] for name in ENDS) + len(self._buffered)
        self.num_returned = 0

    def __len__(self) -> int:
        """Groups that wait for the learner."""
        return len(self._buffered)

    @property
    def num_running(self) -> int:
        """Visits whose answers or verdicts are still missing."""
        return len(self._running)

    @property
    def num_bytes(self) -> int:
        """Size of the arrays of the waiting groups."""
        trajectories = (answer for entry in self._buffered.values() for answer in entry.group.trajectories)
        return sum(t.tokens.nbytes + t.step_map.nbytes + t.logprobs.nbytes + t.entropies.nbytes for t in trajectories)

    @property
    def entries(self) -> list[Entry]:
        """The waiting groups, oldest visits first."""
        return [self._buffered[number] for number in sorted(self._buffered)]

    def free(self, version: int) -> int:
        """How many more visits may be drawn while `version` is the newest published version."""
        has_step = len(self._buffered) >= self._groups_per_step
        if has_step and self._max_bytes is not None and self.num_bytes > self._max_bytes:
            return 0
        ahead = (self._staleness + version + 1) * self._groups_per_step
        used = self.counts["trained"] + len(self._reserved) + len(self._buffered) + len(self._running)
        return max(0, min(self._max_in_flight - len(self._running), ahead - used))

    def start(self, visits: Iterable[Visit]) -> None:
        """Takes drawn visits into account."""
        for visit in visits:
            assert visit.number not in self._running, visit
            self._running.add(visit.number)
            self.counts["drawn"] += 1

    def put(self, visit: Visit, group: Group) -> None:
        """A graded group is ready for the learner."""
        self._running.remove(visit.number)
        self._buffered[visit.number] = Entry(visit, group)

    def drop(self, visit: Visit) -> None:
        """A group with too few graded answers is given up."""
        self._running.remove(visit.number)
        self.counts["dropped"] += 1

    def fail(self, visit: Visit) -> None:
        """No answer came after the last retry."""
        self._running.remove(visit.number)
        self.counts["failed"] += 1

    def expire(self, version: int) -> list[Entry]:
        """Takes out the groups that are too old to be trained by the update that follows `version`."""
        old = [entry for entry in self.entries if version - entry.version > self._staleness]
        for entry in old:
            del self._buffered[entry.visit.number]
        self.counts["drawn"] -= len(old)
        self.num_returned += len(old)
        return old

    def reserve(self) -> list[Entry] | None:
        """The groups of one step, oldest visits first; None while there are too few."""
        if len(self._buffered) < self._groups_per_step:
            return None
        taken = self.entries[: self._groups_per_step]
        for entry in taken:
            self._reserved[entry.visit.number] = self._buffered.pop(entry.visit.number)
        return taken

    def commit(self, numbers: Iterable[int]) -> None:
        """The update has taken these reserved groups."""
        for number in numbers:
            del self._reserved[number]
            self.counts["trained"] += 1

    def release(self) -> None:
        """No update has taken the reserved groups: they wait again."""
        self._buffered |= self._reserved
        self._reserved = {}

    @property
    def ended(self) -> dict[str, int]:
        """Visits that have ended, by how."""
        return {name: self.counts[name] for name in ENDS}

    def check(self) -> None:
        """Every drawn visit is somewhere: the sum rule."""
        held = len(self._running) + len(self._buffered) + len(self._reserved)
        assert self.counts["drawn"] == sum(self.ended.values()) + held, (
            f"prompts are lost: {self.counts}, running {len(self._running)}, buffered {len(self._buffered)}, "
            f"reserved {len(self._reserved)}"
        )
