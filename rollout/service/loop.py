"""The thread that owns a live engine: it takes requests from any event loop and hands back what is heard of them.

One lock guards the list of commands; the engine itself is touched by the thread only. A command waits for at most one
step, so a request that is called off has left the engine when the next step begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from rollout.live import Decoding, Event, Finished, LiveEngine
from rollout.request import Request
from rollout.service.work import EngineState

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
_SWITCH_S = 5e-4
"""How long the interpreter's other threads may keep the engine waiting. A step is some hundred calls into torch, and
each return from one waits for the interpreter: with Python's 5 ms the HTTP side would hold a step up at every call."""


class EngineLostError(RuntimeError):
    """The engine could not go on with a request that it had accepted; another try may succeed."""


class EngineFailedError(EngineLostError):
    """A denoising step failed, maybe because of one of its requests."""


class Ticket:
    """Sequences of one job, in the order of its samples, and the events that wait to be read."""

    def __init__(self, owner: EngineLoop, num_samples: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.numbers: list[int] = []
        """Of the sequences, in the engine; empty until they are submitted."""
        self.left = set(range(num_samples))
        """Samples without their last event."""
        self._owner = owner
        self._heard: asyncio.Queue[list[Event] | BaseException] = asyncio.Queue()

    def put(self, what: list[Event] | BaseException) -> None:
        """Called in the event loop."""
        self._heard.put_nowait(what)

    async def read(self) -> list[tuple[int, Event]]:
        """What has happened since: (sample, event) in order. The first time it may be nothing: the engine has accepted.

        Raises ValueError for a request that cannot be answered and EngineLostError where the engine fails.
        """
        batches = [await self._heard.get()]
        while not self._heard.empty():
            batches.append(self._heard.get_nowait())
        found: list[tuple[int, Event]] = []
        for batch in batches:
            if isinstance(batch, BaseException):
                raise batch
            found += [(self.numbers.index(event.index), event) for event in batch]
        self.left -= {sample for sample, event in found if isinstance(event, Finished)}
        return found

    def drop(self, sample: int) -> None:
        """Call off one sample; events of it may still come."""
        if sample in self.left:
            self.left.discard(sample)
            self._owner.cancel(self, [sample])

    def close(self) -> None:
        """Call off whatever is left."""
        if self.left:
            self._owner.cancel(self, sorted(self.left))
            self.left.clear()


class EngineLoop:
    """Runs a live engine in a thread of its own."""

    def __init__(self, engine: LiveEngine, *, name: str = "engine", threads: int = 1) -> None:
        self.engine, self._threads = engine, threads
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._owners: dict[int, Ticket] = {}
        self._stopping = False
        self._steps = self._forwards = self._tokens = self._finished = self._cancelled = 0
        self._busy_s = 0.0
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request], decoding: Decoding, *, listens: bool) -> Ticket:
        """Have requests answered; called in an event loop. Whoever has the ticket closes it."""
        ticket = Ticket(self, len(requests))
        self._do(lambda: self._submit(ticket, requests, decoding, listens))
        return ticket

    def cancel(self, ticket: Ticket, samples: Sequence[int]) -> None:
        """Call off samples of a ticket."""
        self._do(lambda: self._cancel([ticket.numbers[sample] for sample in samples if ticket.numbers]))

    async def call(self, function: Callable[[LiveEngine], None]) -> None:
        """Run something between two steps, and wait for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def command() -> None:
            try:
                function(self.engine)
            except Exception as error:  # noqa: BLE001 - handed to the caller
                loop.call_soon_threadsafe(_settle, done, error)
            else:
                loop.call_soon_threadsafe(_settle, done, None)

        self._do(command)
        await done

    def state(self, replica: str = "local") -> EngineState:
        """Numbers as of the last step."""
        return EngineState(
            replica,
            pid=os.getpid(),
            active=self.engine.num_active,
            waiting=self.engine.num_waiting,
            steps=self._steps,
            forwards=self._forwards,
            tokens=self._tokens,
            finished=self._finished,
            cancelled=self._cancelled,
            busy_s=self._busy_s,
            weights_version=self.engine.weights_version,
            is_healthy=self.is_healthy,
        )

    @property
    def is_healthy(self) -> bool:
        """Whether the thread lives and its last steps did not all fail."""
        return self._thread.is_alive() and self._failures < _MAX_FAILURES

    @property
    def num_owned(self) -> int:
        """Sequences that somebody waits for."""
        return len(self._owners)

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Stop the thread; jobs still under way end with EngineLostError."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _do(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _submit(self, ticket: Ticket, requests: Sequence[Request], decoding: Decoding, listens: bool) -> None:
        try:
            for request in requests:
                self.engine.check(request, decoding)
            ticket.numbers = [self.engine.submit(request, decoding, listens=listens) for request in requests]
        except Exception as error:  # noqa: BLE001 - handed to the caller
            _post(ticket, error)
            return
        self._owners |= dict.fromkeys(ticket.numbers, ticket)
        _post(ticket, [])

    def _cancel(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self._owners.pop(number, None) is not None:
                self.engine.cancel(number)
                self._cancelled += 1

    def _run(self) -> None:
        sys.setswitchinterval(min(_SWITCH_S, sys.getswitchinterval()))
        # The number of threads of a product belongs to the thread that asks for it.
        torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                while not (self._commands or self._stopping or self.engine.is_busy):
                    self._wake.wait()
                commands, stopping = list(self._commands), self._stopping
                self._commands.clear()
            if stopping:
                self._fail(EngineLostError("this replica is shutting down; send the request again"))
                return
            for command in commands:
                command()
            if self.engine.is_busy:
                self._step()

    def _step(self) -> None:
        began = time.perf_counter()
        try:
            events = self.engine.step()
        except Exception:
            logger.exception("a denoising step failed")
            self._failures += 1
            self._fail(EngineFailedError("the engine failed in a denoising step; send the request again"))
            return
        self._busy_s += time.perf_counter() - began
        self._failures = 0
        self._steps += 1
        of_ticket: dict[Ticket, list[Event]] = {}
        for event in events:
            owner = self._owners.get(event.index)
            if isinstance(event, Finished):
                self._owners.pop(event.index, None)
                self._finished += 1
                self._forwards += event.trajectory.num_forwards
                self._tokens += event.trajectory.answer_length
            if owner is not None:
                of_ticket.setdefault(owner, []).append(event)
        for ticket, own in of_ticket.items():
            _post(ticket, own)

    def _fail(self, error: EngineLostError) -> None:
        """Tell every owner, and empty the engine."""
        for ticket in dict.fromkeys(self._owners.values()):
            _post(ticket, error)
        for number in list(self._owners):
            self.engine.cancel(number)
        self._owners.clear()


def _post(ticket: Ticket, what: list[Event] | BaseException) -> None:
    try:
        ticket.loop.call_soon_threadsafe(ticket.put, what)
    except RuntimeError:
        logger.debug("the event loop of a request is gone")


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
