"""A pool of like workers: work in, results or typed failures out, and dead workers replaced.

A worker is *preparing* (loading, taking weights) -> *ready* -> *preparing* again after it was lost; *stranded* while
its machine is lost and no other has room for it; or *gone* for good. Workers may join in mid-run (`_more`). A worker is
ready only after it has itself answered what the pool wants to hear. Nothing here waits without a deadline: every call
and every preparation has one, and both are repeated a limited number of times. A stranded worker waits as long as
another one works.

What is retried, and where, is decided here and not by Ray:

| a call ends as | the worker | its items |
|---|---|---|
| value | stays ready | each with its result |
| lost, out of memory, late | killed, started anew | to the next free worker, `max_retries` times, then the failure |
| `raised`, several items | stays ready | one by one, to find the guilty one |
| `raised`, one item | stays ready | the failure, never retried |

The last try of what lost its worker is one by one: an item that kills workers takes no other with it.
With a `straggler_factor`, a call that takes that many times longer than its like is made a second time on a worker that
has nothing else to do; the first answer wins, and the other is thrown away when it comes.
"""

from __future__ import annotations

import logging
import statistics
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from cluster.actors import Launcher, wait
from cluster.calls import ActorError, ActorSpec, CallFailure, Future, Handle
from cluster.member import Member, Work
from cluster.places import LOOK_S, Vacancy, is_placed

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5
"""Restarts of one worker without a call that went well in between; after that it is gone."""
POLL_S = 60.0
MIN_CALLS_KNOWN = 5
"""Calls that have to have ended before any is called late."""
MIN_STRAGGLER_S = 2.0
"""No call is late before."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool(ABC, Generic[Item, Result]):
    """Sends work to whichever worker is free, one call at a time each."""

    def __init__(
        self,
        specs: Sequence[ActorSpec],
        launcher: Launcher,
        *,
        max_retries: int,
        straggler_factor: float | None = None,
        place_timeout_s: float = 600,
    ) -> None:
        """`place_timeout_s`: how long the last worker without a machine is waited for."""
        self._launcher = launcher
        self._members: list[Member[Item]] = [Member(launcher.launch(spec), spec.bundle) for spec in specs]
        self._place_timeout_s = place_timeout_s
        self._next_look = 0.0
        self._max_retries = max_retries
        self._straggler_factor = straggler_factor
        self._item_s: deque[float] = deque(maxlen=64)
        self.num_reissued = 0
        self.num_joined = 0
        self.num_ended = 0
        """Calls and preparations that have ended."""
        self._queue: deque[Work[Item]] = deque()
        self._ended: list[tuple[Item, Result | CallFailure]] = []
        self._failures: Counter[str] = Counter()
        self.num_restarts = 0
        self._last_failure: CallFailure | None = None
        self._call_s: list[float] = []

    # ---- what a kind of pool adds

    @abstractmethod
    def _prepare(self, handle: Handle) -> list[Future]:
        """Calls that make a fresh worker ready; they run in order on the worker."""

    @abstractmethod
    def _wrong_with(self, handle: Handle, answers: Sequence[Any]) -> str:
        """What is wrong with the answers of a preparation, none of which is a failure; empty if nothing."""

    def _worn_out(self, handle: Handle, answers: Sequence[Any]) -> str:
        """Why a worker that is prepared should be replaced all the same; empty if it should not."""
        return ""

    def _missing(self, handle: Handle) -> list[Future]:
        """Further calls that a prepared worker needs, because the pool has moved on meanwhile."""
        return []

    def _more(self) -> ActorSpec | None:
        """One more worker that there is room for now."""
        return None

    @abstractmethod
    def _call(self, handle: Handle, items: Sequence[Item]) -> Future:
        """Starts the call that works on the items."""

    @abstractmethod
    def _results(self, items: Sequence[Item], value: Any) -> Sequence[Result]:
        """The results of the items, in order, from the value of their call."""

    # ---- use

    def begin(self) -> None:
        """Has all workers prepare themselves, and does not wait for them."""
        for member in self._members:
            self._begin(member, self._prepare(member.handle))

    def start(self) -> None:
        """Waits until all workers are prepared; raises `ActorError` where one cannot be made ready."""
        if not any(member.preparation for member in self._members):
            self.begin()
        self._settle(with_new=True)
        if any(member.is_gone for member in self._members) and self._last_failure:
            raise ActorError(self._last_failure)

    def close(self) -> None:
        """Kills all workers."""
        for member in self._members:
            member.is_gone = True
            member.handle.kill()

    @property
    def num_ready(self) -> int:
        """Workers that take work."""
        return sum(member.is_ready for member in self._members)

    @property
    def num_pending(self) -> int:
        """Pieces of work that have not ended."""
        return len(self._queue) + sum(member.call is not None for member in self._members)

    def submit(self, items: Sequence[Item]) -> None:
        """Queues one piece of work."""
        self._queue.append(Work(tuple(items)))
        self._dispatch()

    def futures(self) -> list[Future]:
        """All calls under way, to wait for."""
        return [future for member in self._members for future in member.futures]

    def collect(self) -> list[tuple[Item, Result | CallFailure]]:
        """What has ended since the last time, without waiting; gives free workers their next work."""
        self._look_at_places()
        ended_now, _ = wait(self.futures(), timeout_s=0)
        done = {id(future) for future in ended_now}
        for member in self._members:
            if member.call and id(member.call[0]) in done:
                self._end_call(member, *member.call)
            if member.preparation and id(member.preparation[-1]) in done:
                self._check_preparation(member)
        self._dispatch()
        ended, self._ended = self._ended, []
        return ended

    def finish(self, items: Sequence[Item]) -> list[Result | CallFailure]:
        """Waits for submitted items and returns theirs, in order; what else ends meanwhile is left for `collect`."""
        outcomes: dict[int, Result | CallFailure] = {}
        others = []
        wanted = {id(item) for item in items}
        while len(outcomes) < len(items):
            wait(self.futures(), timeout_s=POLL_S)
            for item, outcome in self.collect():
                if id(item) in wanted:
                    outcomes[id(item)] = outcome
                else:
                    others.append((item, outcome))
        self._ended += others
        return [outcomes[id(item)] for item in items]

    def abandon(self) -> None:
        """Forgets all work: what is queued is not done, what is under way is thrown away when it ends."""
        self._queue.clear()
        self._ended = []
        for member in self._members:
            self._disown(member)

    def describe(self) -> list[str]:
        """What each worker does, a line each, for a person who wonders what everybody waits for."""
        return [f"{len(self._queue)} pieces of work queued", *(member.describe() for member in self._members)]

    def take_call_seconds(self) -> list[float]:
        """How long the calls took that went well since the last time."""
        seconds, self._call_s = self._call_s, []
        return seconds

    def take_failures(self) -> dict[str, int]:
        """Failed calls by kind since the last time, repaired ones included."""
        failures, self._failures = dict(self._failures), Counter()
        return failures

    # ---- inside

    def _settle(self, *, with_new: bool) -> None:
        """Waits until at least one worker is ready and no idle one prepares, new processes only `with_new`.

        For a stranded one it does not wait, unless it is the last.
        """
        self._require_a_worker()
        while self.num_ready == 0 or any(
            m.preparation and m.call is None and not m.is_stranded and (with_new or not m.is_new) for m in self._members
        ):
            wait(self.futures(), timeout_s=POLL_S)
            self._ended = self.collect()

    def _prepared(self, answers: Sequence[Any], seconds: float) -> None:
        """Takes note of a preparation that went well."""

    def _begin(self, member: Member[Item], preparation: list[Future]) -> None:
        member.preparation, member.since = preparation, time.monotonic()

    def _check_preparation(self, member: Member[Item]) -> None:
        """Ready or failed, now that the last call has answered; it does so only after the ones before it."""
        answers = [future.outcome() for future in member.preparation]
        member.preparation = []
        if member.is_stranded:
            self._found_a_place(member, answers[-1])
            return
        self.num_ended += 1
        failure = next((answer for answer in answers if isinstance(answer, CallFailure)), None)
        if failure is None and (wrong := self._wrong_with(member.handle, answers)):
            failure = CallFailure("raised", member.handle.name, "prepare", wrong)
        if failure is None and (why := self._worn_out(member.handle, answers)):
            failure = CallFailure("memory_growth", member.handle.name, "prepare", why, where="between two batches")
        if failure is None:
            self._prepared(answers, time.monotonic() - member.since)
            if missing := self._missing(member.handle):
                self._begin(member, missing)
            else:
                member.is_new = False
        elif failure.is_infrastructure:
            self._note(failure)
            self._replace(member, failure)
        else:
            self._give_up(member, failure)

    def _end_call(self, member: Member[Item], future: Future, work: Work[Item]) -> None:
        member.call = None
        self.num_ended += 1
        outcome = future.outcome()
        if not isinstance(outcome, CallFailure):
            member.num_restarts = 0
            seconds = time.monotonic() - work.started
            self._call_s.append(seconds)
            if work.items:
                self._item_s.append(seconds / len(work.items))
                self._ended += zip(work.items, self._results(work.items, outcome), strict=True)
                self._disown(self._twin(work))
            return
        self._note(outcome)
        self._retry(work, outcome)
        if outcome.is_infrastructure:
            self._replace(member, outcome)

    def _retry(self, work: Work[Item], failure: CallFailure) -> None:
        if not work.items or (failure.is_infrastructure and self._twin(work)):
            return
        one_by_one = [(item,) for item in work.items]
        if failure.is_infrastructure and work.num_tries < self._max_retries:
            num_tries = work.num_tries + 1
            # The whole once more, as long as another try is left for each of its items alone.
            pieces = [work.items] if work.num_tries == 0 and num_tries < self._max_retries else one_by_one
            self._queue.extendleft(Work(items, num_tries) for items in reversed(pieces))
        elif not failure.is_infrastructure and len(work.items) > 1:
            self._queue.extendleft(Work(items, work.num_tries) for items in reversed(one_by_one))
        else:
            self._ended += [(item, failure) for item in work.items]

    def _replace(self, member: Member[Item], failure: CallFailure) -> None:
        """A fresh process in place of one that was lost or is stuck; what that one worked on is sent elsewhere."""
        if member.call:
            work, member.call = member.call[1], None
            self._retry(work, failure)
        if member.place is not None and not is_placed(member.place):
            self._strand(member)
            return
        if member.num_restarts >= MAX_RESTARTS:
            self._give_up(member, failure)
            return
        logger.warning("%s is started anew: %s", member.handle.name, failure.headline)
        member.num_restarts += 1
        self.num_restarts += 1
        member.is_new = True
        member.handle.restart()
        self._begin(member, self._prepare(member.handle))

    # ---- machines that leave and join

    def _look_at_places(self) -> None:
        """Takes in workers that there is room for, and notices those that wait to be started on a lost machine."""
        if (spec := self._more()) is not None:
            logger.warning("%s joins: a machine has room for it", spec.name)
            member: Member[Item] = Member(self._launcher.launch(spec), spec.bundle)
            self._members.append(member)
            self.num_joined += 1
            self._begin(member, self._prepare(member.handle))
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        for member in self._members:
            is_starting = member.is_new and member.preparation and not member.is_stranded
            if is_starting and member.place is not None and not is_placed(member.place):
                self._strand(member)

    def _strand(self, member: Member[Item]) -> None:
        """No process until a machine has room for it; that costs no restart."""
        assert member.place is not None
        if not member.is_stranded:
            logger.warning("the machine of %s is lost; it waits for another", member.handle.name)
            member.handle.kill()
        member.is_new = member.is_stranded = True
        self._begin(member, [Vacancy(member.place, member.handle.name, timeout_s=self._place_timeout_s)])

    def _found_a_place(self, member: Member[Item], failure: CallFailure | None) -> None:
        if failure is None:
            member.is_stranded = False
            self.num_restarts += 1
            member.handle.restart()
            self._begin(member, self._prepare(member.handle))
        elif any(other is not member and not other.is_gone and not other.is_stranded for other in self._members):
            self._strand(member)
        else:
            self._note(failure)
            self._give_up(member, failure)

    def _give_up(self, member: Member[Item], failure: CallFailure) -> None:
        logger.error("%s is gone for good: %s", member.handle.name, failure.headline)
        self._last_failure = failure
        member.is_gone = True
        member.preparation = []
        member.handle.kill()

    def _note(self, failure: CallFailure) -> None:
        role = failure.actor.rpartition("-")[0] or failure.actor
        self._failures[f"{role}_{failure.kind}"] += 1

    def _dispatch(self) -> None:
        self._require_a_worker()
        for member in self._members:
            if self._queue and member.is_ready and member.call is None:
                work = self._queue.popleft()
                started = time.monotonic()
                member.call = self._call(member.handle, work.items), replace(work, started=started)
        self._reissue_late()

    def _reissue_late(self) -> None:
        """Gives workers that have nothing to do a second go at calls that take far longer than their like."""
        if self._straggler_factor is None or len(self._item_s) < MIN_CALLS_KNOWN:
            return
        idle = [member for member in self._members if member.is_ready and member.call is None]
        item_s, now = self._straggler_factor * statistics.median(self._item_s), time.monotonic()
        for member in self._members if idle else ():
            if member.call is None or not idle:
                continue
            future, work = member.call
            is_late = work.items and now - work.started > max(MIN_STRAGGLER_S, item_s * len(work.items))
            if not is_late or self._twin(work, member):
                continue
            other, again = idle.pop(), replace(work, was_reissued=True)
            logger.warning(
                "%s is late with %d items: %s tries too", *(member.handle.name, len(work.items), other.handle.name)
            )
            member.call = future, again
            other.call = self._call(other.handle, work.items), replace(again, started=time.monotonic())
            self.num_reissued += 1

    def _twin(self, work: Work[Item], but: Member[Item] | None = None) -> Member[Item] | None:
        """Another worker that works on the very same items."""
        if not work.was_reissued:
            return None
        same = (m for m in self._members if m is not but and m.call and work.items and m.call[1].items is work.items)
        return next(same, None)

    def _disown(self, member: Member[Item] | None) -> None:
        """Lets a call go on that nobody wants the result of."""
        if member and member.call:
            member.call = member.call[0], Work((), started=member.call[1].started)

    def _require_a_worker(self) -> None:
        if all(member.is_gone for member in self._members):
            assert self._last_failure is not None
            raise ActorError(self._last_failure)
