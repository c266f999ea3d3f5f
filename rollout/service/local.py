"""The service in one process, without Ray: the same classes, for a debugger and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from rollout.service.answers import Grade
from rollout.service.api import build_app
from rollout.service.config import EngineConfig, ServiceConfig
from rollout.service.follow import Follower
from rollout.service.gate import App
from rollout.service.host import ModelHost
from rollout.service.keys import digest_of

KEEP_ALIVE_S = 5
HEADER_BYTES = 16384


def local_app(
    models: Mapping[str, str],
    *,
    engine: EngineConfig | None = None,
    service: ServiceConfig | None = None,
    api_key: str | None = None,
    follow: Path | None = None,
    grade: Grade | None = None,
) -> tuple[App, ModelHost]:
    """The application around an engine in this process, and its host."""
    host = ModelHost(models, engine or EngineConfig())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await host.start()
        tasks = [] if follow is None else [asyncio.create_task(Follower(host, next(iter(models)), follow).run())]
        yield
        for task in tasks:
            task.cancel()
        for name in list(host.sources):
            await host.unload(name)

    return build_app(
        host, service or ServiceConfig(), key_digest=digest_of(api_key), grade=grade, lifespan=lifespan
    ), host


def server_of(app: App, *, host: str, port: int) -> uvicorn.Server:
    """A server that shuts down by itself within seconds, whatever its clients do."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=HEADER_BYTES,
            server_header=False,
            ws="none",
        )
    )


@contextmanager
def running(app: App, *, host: str = "127.0.0.1", timeout_s: float = 60.0) -> Iterator[str]:
    """The application on a free port, served from a thread; yields its address."""
    server = server_of(app, host=host, port=0)
    started = threading.Event()

    async def serve() -> None:
        task = asyncio.ensure_future(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="http", daemon=True)
    thread.start()
    if not started.wait(timeout_s) or not server.started:
        raise RuntimeError(f"the server did not start within {timeout_s:g} s; see the log above")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout_s)
