"""What every request passes before the application: key, size, patience, and room.

A request that may cost something is cut off when its client goes away: the task that answers it is cancelled, which
calls off its sequences in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from rollout.service.config import Limits
from rollout.service.errors import ApiError
from rollout.service.metrics import Metrics

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_OPEN = ("/", "/healthz")
_OPEN_FOLDER = "/page/"
_SAFE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


class Gate:
    """ASGI middleware around the application.

    `key_digest`: SHA-256 of what clients must send as `Authorization: Bearer <key>`; the key itself is kept nowhere.
    The page and the health check are open, all else is not. Without a key only requests of this machine are answered,
    and only under its loopback names, so that no web page can pass for them.
    """

    def __init__(self, app: App, *, limits: Limits, key_digest: bytes | None, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._key_digest = key_digest
        self._under_way = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it here."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._metrics.request(scope["path"]) as seen:
            answer = _Answer(send, seen.status)
            try:
                await self._pass(scope, receive, answer)
            except ApiError as error:
                await _refuse(error, scope, receive, answer)
            except asyncio.CancelledError:
                raise
            except Exception:
                # The cause goes to the log only: a traceback tells paths.
                logger.exception("a request failed")
                failed = ApiError(500, "the server failed on this request; its log says why", code="internal_error")
                await _refuse(failed, scope, receive, answer)

    async def _pass(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        self._check_key(scope)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, answer)
            return
        if self._under_way >= self._limits.max_concurrent:
            why = f"{self._under_way} requests are under way, as many as this server takes at once; try again"
            raise ApiError(429, why, code="too_many_requests", retry_after_s=1)
        self._under_way += 1
        try:
            body = await self._body(scope, receive)
            if body is not None:
                await self._until_gone(scope, body, receive, answer)
        finally:
            self._under_way -= 1

    def _check_key(self, scope: Message) -> None:
        path = scope["path"]
        if self._key_digest is None:
            _check_loopback(scope)
            return
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            return
        kind, _, key = _header(scope, b"authorization").partition(b" ")
        # In a time that does not depend on where they differ, nor on the length of the key.
        right = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._key_digest)
        if not (right and kind.lower() == b"bearer"):
            raise ApiError(
                401, "this server needs its key: send the header Authorization: Bearer <key>", code="invalid_api_key"
            )

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body, within the limits; None if the client went away."""
        limit = self._limits.max_body_bytes
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_long(limit)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_long(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            why = f"the body did not arrive within {self._limits.body_timeout_s:g} s; send it faster"
            raise ApiError(408, why, code="body_timeout") from None

    async def _until_gone(self, scope: Message, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the application until it has answered or the client has gone."""
        gone = asyncio.Event()
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        work = asyncio.ensure_future(self._app(scope, replay, answer))
        watcher = asyncio.create_task(watch())
        try:
            await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, watcher):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(work, watcher, return_exceptions=True)


class _Answer:
    """Sends an answer on, adds headers, and remembers whether it has begun."""

    def __init__(self, send: Send, status: Callable[[int], None]) -> None:
        self._send, self._status = send, status
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._status(message["status"])
            message = {**message, "headers": [*message.get("headers", []), *_SAFE]}
        await self._send(message)


async def _refuse(error: ApiError, scope: Message, receive: Receive, answer: _Answer) -> None:
    if not answer.has_begun:
        await error.response()(scope, receive, answer)


def _header(scope: Message, wanted: bytes) -> bytes:
    """First value of a header; empty where there is none."""
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")


def _check_loopback(scope: Message) -> None:
    """Refuse what came from elsewhere, or under a name that is not this machine's own."""
    server = (scope.get("server") or ("",))[0]
    name = urlsplit(f"//{_header(scope, b'host').decode('latin-1')}").hostname or server
    if not (is_loopback(str(server)) and is_loopback(name)):
        why = "this server has no key, so it answers this machine only, as localhost; start it with a key to open it"
        raise ApiError(403, why, code="loopback_only")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _too_long(limit: int) -> ApiError:
    return ApiError(413, f"the body is longer than {limit} bytes; send less", code="body_too_large")
