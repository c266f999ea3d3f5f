"""Server-sent events, and several jobs heard as one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from rollout.service.work import Backend, Heard, Job

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Numbered = tuple[int, Sequence[Heard]]
"""Which job, and what is heard of it."""


def message(data: Any, *, event: str | None = None) -> bytes:
    """One event. JSON has no line break outside of texts, and none inside."""
    head = "" if event is None else f"event: {event}\n"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


@asynccontextmanager
async def heard_of(backend: Backend, jobs: Sequence[Job]) -> AsyncIterator[AsyncGenerator[Numbered, None]]:
    """What is heard of jobs, as it comes; leaving the context calls off what is not finished."""
    async with aclosing(_one(backend, jobs[0]) if len(jobs) == 1 else _merged(backend, jobs)) as numbered:
        yield numbered


async def _one(backend: Backend, job: Job) -> AsyncGenerator[Numbered, None]:
    async with aclosing(backend.run(job)) as batches:
        async for batch in batches:
            yield 0, batch


async def _merged(backend: Backend, jobs: Sequence[Job]) -> AsyncGenerator[Numbered, None]:
    heard: asyncio.Queue[Numbered | BaseException | None] = asyncio.Queue()

    async def pump(number: int, job: Job) -> None:
        try:
            async with aclosing(backend.run(job)) as batches:
                async for batch in batches:
                    heard.put_nowait((number, batch))
        except Exception as error:  # noqa: BLE001 - raised by the reader
            heard.put_nowait(error)
        finally:
            heard.put_nowait(None)

    tasks = [asyncio.create_task(pump(number, job)) for number, job in enumerate(jobs)]
    left = len(tasks)
    try:
        while left:
            what = await heard.get()
            if what is None:
                left -= 1
            elif isinstance(what, BaseException):
                raise what
            else:
                yield what
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
