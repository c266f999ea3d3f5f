"""Jobs of a request, answered whole or as a stream, in the form of whichever endpoint was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

from starlette.responses import JSONResponse, Response, StreamingResponse

from rollout.service import sse
from rollout.service.errors import ApiError
from rollout.service.metrics import Metrics
from rollout.service.usage import Usage
from rollout.service.work import Accepted, Backend, Done, Job, Refused, Stepped

Told = tuple[int, Accepted | Stepped | Done]
"""Number of a job, and something that was heard of it."""


class Form(Protocol):
    """How an endpoint writes what is heard of its jobs, which are numbered."""

    def accepted(self, number: int, heard: Accepted) -> list[bytes]:
        """What a stream begins a job with; called for whole answers too."""
        ...

    def stepped(self, number: int, heard: Stepped) -> list[bytes]:
        """What a stream tells of a step."""
        ...

    def done(self, number: int, heard: Done, extra: Mapping[str, Any]) -> list[bytes]:
        """What a stream tells of a finished sample; `extra`: its reward, if it was graded."""
        ...

    def end(self, usage: Usage) -> list[bytes]:
        """What a stream tells after the last sample."""
        ...

    def choice(self, number: int, heard: Done, extra: Mapping[str, Any]) -> dict[str, Any]:
        """A finished sample in a whole answer; its place is its `index`."""
        ...

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        ...


@runtime_checkable
class Grade(Protocol):
    """Grades answers of `/v1/rollouts` with a task."""

    def check(self, task: Mapping[str, Any]) -> None:
        """Raise ValueError for a task that cannot be graded here."""
        ...

    def __call__(self, task: Mapping[str, Any], text: str) -> Mapping[str, Any]:
        """Verdict on an answer; called in a thread."""
        ...


class Answers:
    """Has jobs answered by a backend, and counts what comes of them."""

    def __init__(self, backend: Backend, metrics: Metrics, grade: Grade | None) -> None:
        self._backend, self._metrics, self._grade = backend, metrics, grade

    async def respond(
        self, jobs: Sequence[Job], form: Form, *, stream: bool, task: Mapping[str, Any] | None = None
    ) -> Response:
        """The answer to a request. Raises ApiError for a refusal; one that comes before the first event of a stream is
        an answer with its own status."""
        if not stream:
            return JSONResponse(await self._whole(jobs, form, task))
        lines = self._lines(jobs, form, task)
        try:
            first = await anext(lines)
        except BaseException:
            await lines.aclose()
            raise
        return StreamingResponse(_with_errors(first, lines), media_type="text/event-stream", headers=sse.HEADERS)

    async def _whole(self, jobs: Sequence[Job], form: Form, task: Mapping[str, Any] | None) -> dict[str, Any]:
        usage, choices = Usage(), list[dict[str, Any]]()
        async with aclosing(self._told(jobs, usage)) as batches:
            async for batch in batches:
                for number, heard in batch:
                    if isinstance(heard, Accepted):
                        form.accepted(number, heard)
                    elif isinstance(heard, Done):
                        choices.append(form.choice(number, heard, await self._graded(heard, task)))
        return form.whole(sorted(choices, key=itemgetter("index")), usage)

    async def _lines(
        self, jobs: Sequence[Job], form: Form, task: Mapping[str, Any] | None
    ) -> AsyncGenerator[bytes, None]:
        usage = Usage()
        async with aclosing(self._told(jobs, usage)) as batches:
            async for batch in batches:
                lines: list[bytes] = []
                for number, heard in batch:
                    if isinstance(heard, Accepted):
                        lines += form.accepted(number, heard)
                    elif isinstance(heard, Stepped):
                        lines += form.stepped(number, heard)
                    else:
                        lines += form.done(number, heard, await self._graded(heard, task))
                yield b"".join(lines)
        yield b"".join([*form.end(usage), sse.DONE])

    async def _told(self, jobs: Sequence[Job], usage: Usage) -> AsyncGenerator[list[Told], None]:
        """What is heard of jobs, counted. Raises ApiError for a refusal, and where answers are missing at the end."""
        left = sum(job.num_samples for job in jobs)
        async with sse.heard_of(self._backend, jobs) as numbered:
            async for number, batch in numbered:
                told: list[Told] = []
                for heard in batch:
                    if isinstance(heard, Refused):
                        raise ApiError.of(heard)
                    if isinstance(heard, Accepted):
                        usage.add_prompt(heard)
                    elif isinstance(heard, Done):
                        left -= 1
                        usage.add(heard)
                        self._metrics.answered(heard)
                    told.append((number, heard))
                yield told
        if left:
            why = "the engine was lost before the answer was finished; send the request again"
            raise ApiError.of(Refused("lost", why))

    def check_task(self, task: Mapping[str, Any]) -> None:
        """Raise ApiError for a task that cannot be graded here."""
        if self._grade is None:
            raise ApiError(400, "this server grades no answers; leave out task", code="no_grader", param="task")
        try:
            self._grade.check(task)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value", param="task") from None

    async def _graded(self, done: Done, task: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if task is None or self._grade is None:
            return {}
        return {"reward": dict(await asyncio.to_thread(self._grade, task, done.text))}


async def _with_errors(first: bytes, lines: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The stream; an error after its beginning is an event, because the status has been sent."""
    async with aclosing(lines):
        try:
            yield first
            async for line in lines:
                if line:
                    yield line
        except ApiError as error:
            yield sse.message(error.body(), event="error")
