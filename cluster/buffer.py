"""Groups between the pools and the learner: the one owner of how many prompts may be under way.

Life of a visit:   drawn -> running -> buffered -> trained
                              |           |-> dropped   (too few graded answers, or too old)
                              |-> dropped, failed       (failed: no answer after the last retry)

Capacity (AReaL's rule, written so that nothing leaks): with `version` weights published so far,

    free = min(max_in_flight - running, (staleness + version + 1) * groups_per_step - (trained + buffered + running))

A dropped or failed visit leaves `running` or `buffered`, so its place is drawn again. With `staleness` 0 exactly the
groups of one step are drawn per version: synchronous training is a setting of the same path. At all times

    drawn = trained + dropped + failed + running + buffered

Groups are handed out in the order of their visits, not of their finish, so that one seed gives one training batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.cursor import Visit
from rollout.records import Group

ENDS = ("trained", "dropped", "failed")
"""How a visit can end."""


class GroupBuffer:
    """Counts visits from draw to end, and holds the groups that wait for the learner."""

    def __init__(
        self, *, groups_per_step: int, staleness: int, max_in_flight: int, ended: Mapping[str, int] | None = None
    ) -> None:
        """`ended` holds the visits that ended before a resume: `trained`, `dropped`, `failed`."""
        if min(groups_per_step, max_in_flight) < 1 or staleness < 0:
            raise ValueError(
                f"groups_per_step {groups_per_step} and max_in_flight {max_in_flight} must be at least 1, "
                f"staleness {staleness} at least 0"
            )
        self._groups_per_step = groups_per_step
        self._staleness = staleness
        self._max_in_flight = max_in_flight
        self._running: set[int] = set()
        self._buffered: dict[int, Group] = {}
        self.counts = {name: 0 for name in ENDS} | dict(ended or {})
        self.counts["drawn"] = sum(self.counts[name] for name in ENDS)

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
        trajectories = (trajectory for group in self._buffered.values() for trajectory in group.trajectories)
        return sum(t.tokens.nbytes + t.step_map.nbytes + t.logprobs.nbytes + t.entropies.nbytes for t in trajectories)

    def free(self, version: int) -> int:
        """How many more visits may be drawn while `version` is the newest published version."""
        ahead = (self._staleness + version + 1) * self._groups_per_step
        used = self.counts["trained"] + len(self._buffered) + len(self._running)
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
        self._buffered[visit.number] = group

    def drop(self, visit: Visit) -> None:
        """A group with too few graded answers is given up."""
        self._running.remove(visit.number)
        self.counts["dropped"] += 1

    def fail(self, visit: Visit) -> None:
        """No answer came after the last retry."""
        self._running.remove(visit.number)
        self.counts["failed"] += 1

    def take(self) -> list[tuple[int, Group]] | None:
        """The groups of one step with their visit numbers, oldest visits first; None while there are too few."""
        if len(self._buffered) < self._groups_per_step:
            return None
        numbers = sorted(self._buffered)[: self._groups_per_step]
        taken = [(number, self._buffered.pop(number)) for number in numbers]
        self.counts["trained"] += len(taken)
        return taken

    @property
    def ended(self) -> dict[str, int]:
        """Visits that have ended, by how."""
        return {name: self.counts[name] for name in ENDS}

    def check(self) -> None:
        """Every drawn visit is somewhere: the sum rule."""
        counts = self.counts
        assert counts["drawn"] == sum(self.ended.values()) + len(self._running) + len(self._buffered), (
            f"prompts are lost: {counts}, running {len(self._running)}, buffered {len(self._buffered)}"
        )
