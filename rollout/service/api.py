"""The HTTP interface as an ASGI application around a backend; it knows nothing of Ray or of a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rollout.service import catalog, jobs, native, sse
from rollout.service.config import ServiceConfig
from rollout.service.errors import ApiError, invalid_body
from rollout.service.gate import App, Gate
from rollout.service.metrics import Metrics
from rollout.service.openai import Form, Usage
from rollout.service.schemas import ChatBody, CompletionBody, InfillBody, RolloutBody, Sampling
from rollout.service.work import Accepted, Backend, Done, Job, ModelCard, Refused, Stepped

PAGE = Path(__file__).resolve().parent.parent / "page"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own files and nothing inline, so that a model's text can never run as code."""
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
_BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
    "/v1/rollouts": RolloutBody,
    "/v1/infill": InfillBody,
}


def build_app(
    backend: Backend,
    config: ServiceConfig,
    *,
    key_digest: bytes | None = None,
    grade: Grade | None = None,
    lifespan: Lifespan | None = None,
) -> App:
    """The application with its gate in front."""
    metrics = Metrics()
    api = FastAPI(title="unmask", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    _Routes(backend, config, metrics, grade).add_to(api)
    api.add_exception_handler(RequestValidationError, _on_invalid)  # type: ignore[arg-type]
    api.add_exception_handler(ApiError, _on_error)  # type: ignore[arg-type]
    api.add_exception_handler(HTTPException, _on_http)  # type: ignore[arg-type]
    api.add_exception_handler(Exception, _on_failure)
    if config.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return Gate(api, limits=config.limits, key_digest=key_digest, metrics=metrics)


@runtime_checkable
class Grade(Protocol):
    """Grades answers of `/v1/rollouts` with a task."""

    def check(self, task: Mapping[str, Any]) -> None:
        """Raise ValueError for a task that cannot be graded here."""
        ...

    def __call__(self, task: Mapping[str, Any], text: str) -> Mapping[str, Any]:
        """Verdict on an answer; called in a thread."""
        ...


class _Routes:
    """The endpoints."""

    def __init__(self, backend: Backend, config: ServiceConfig, metrics: Metrics, grade: Grade | None) -> None:
        self._backend, self._config, self._metrics, self._grade = backend, config, metrics, grade
        self._limits = config.limits

    def add_to(self, api: FastAPI) -> None:
        """Register every route."""
        errors: dict[int | str, dict[str, Any]] = {
            status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
            for status, text in _STATUSES.items()
        }
        for path, handler in (
            ("/v1/completions", self.completions),
            ("/v1/chat/completions", self.chat),
            ("/v1/rollouts", self.rollouts),
            ("/v1/infill", self.infill),
        ):
            api.post(path, responses=errors, response_model=None)(handler)
        api.get("/v1/models", responses=errors)(self.models)
        api.get("/v1/models/{name:path}", responses=errors)(self.model)
        api.get("/v1/samplers", responses=errors)(self.samplers)
        api.get("/healthz", responses=errors, response_model=None)(self.healthz)
        api.get("/metrics", response_model=None, include_in_schema=False)(self.metrics)
        api.get("/", response_model=None, include_in_schema=False)(self.page)
        if PAGE.is_dir():
            api.mount("/page", StaticFiles(directory=PAGE), name="page")

    async def completions(self, body: CompletionBody) -> Response:
        """Complete a prompt, or several."""
        model, seed = await self._model(body), jobs.seed_of(body)
        made = jobs.completion_jobs(body, self._limits, model=model, seed=seed)
        form = Form("text", model, seed, body.logprobs is not None, echo=body.echo)
        return await self._openai(made, form, body)

    async def chat(self, body: ChatBody) -> Response:
        """Answer a chat."""
        model, seed = await self._model(body), jobs.seed_of(body)
        made = jobs.chat_job(body, self._limits, model=model, seed=seed)
        return await self._openai([made], Form("chat", model, seed, body.logprobs), body)

    async def rollouts(self, body: RolloutBody) -> Response:
        """Samples of one prompt with their step maps, log-probabilities and weights version."""
        if body.task is not None:
            self._check_task(body.task)
        job = jobs.rollout_job(body, self._limits, model=await self._model(body), seed=jobs.seed_of(body))
        return await self._native(job, "rollouts", body.task)

    async def infill(self, body: InfillBody) -> Response:
        """Fill holes between texts."""
        job = jobs.infill_job(body, self._limits, model=await self._model(body), seed=jobs.seed_of(body))
        return await self._native(job, "infills", None)

    async def models(self) -> dict[str, Any]:
        """Models that can be asked for, the default one first."""
        return {"object": "list", "data": [self._card(card) for card in await self._backend.models()]}

    async def model(self, name: str) -> dict[str, Any]:
        """One model."""
        for card in await self._backend.models():
            if card.name == name:
                return self._card(card)
        raise ApiError(404, "no such model is served here; see /v1/models", code="model_not_found", param="model")

    async def samplers(self) -> dict[str, Any]:
        """Samplers with their options."""
        return {"object": "list", "data": catalog.describe_all()}

    async def healthz(self) -> Response:
        """Whether requests can be answered."""
        states = await self._backend.states()
        healthy = all(state.is_healthy for state in states)
        status = "ok" if healthy else "the steps of an engine fail"
        return JSONResponse({"status": status, "engines": len(states)}, status_code=200 if healthy else 503)

    async def metrics(self) -> Response:
        """Numbers for Prometheus."""
        return Response(self._metrics.page(await self._backend.states()), media_type="text/plain; version=0.0.4")

    async def page(self) -> Response:
        """The page on which a person watches the model."""
        if not (PAGE / "index.html").is_file():
            raise ApiError(404, "this server has no page; the interface is under /v1", code="not_found")
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _PAGE_POLICY}
        return FileResponse(PAGE / "index.html", headers=headers)

    # ---- OpenAI's form

    async def _openai(self, made: Sequence[Job], form: Form, body: CompletionBody | ChatBody) -> Response:
        if body.stream:
            return await self._streamed(self._openai_stream(made, form, body))
        choices: dict[int, dict[str, Any]] = {}
        usage, prompts = Usage(), dict[int, str]()
        async with sse.heard_of(self._backend, made) as numbered:
            async for number, batch in numbered:
                for heard in batch:
                    if isinstance(heard, Refused):
                        raise ApiError.of(heard)
                    if isinstance(heard, Accepted):
                        usage.add_prompt(heard)
                        prompts[number] = heard.prompt
                    elif isinstance(heard, Done):
                        self._count(heard, usage)
                        index = number * body.n + heard.sample
                        choices[index] = form.choice(index, heard, prompts[number])
        _check_complete(len(choices), made)
        return JSONResponse(form.whole([choices[index] for index in sorted(choices)], usage))

    async def _openai_stream(
        self, made: Sequence[Job], form: Form, body: CompletionBody | ChatBody
    ) -> AsyncGenerator[bytes, None]:
        usage, prompts, options, finished = Usage(), dict[int, str](), body.options_of_stream, 0
        async with sse.heard_of(self._backend, made) as numbered:
            async for number, batch in numbered:
                lines = []
                for heard in batch:
                    if isinstance(heard, Refused):
                        raise ApiError.of(heard)
                    if isinstance(heard, Accepted):
                        usage.add_prompt(heard)
                        prompts[number] = heard.prompt
                        firsts = [form.first(number * body.n + sample, heard.prompt) for sample in range(body.n)]
                        lines += [sse.message(first) for first in firsts if first is not None]
                        continue
                    index = number * body.n + heard.sample
                    if isinstance(heard, Done):
                        self._count(heard, usage)
                        finished += 1
                    elif options.include_steps:
                        lines.append(sse.message(native.stepped(heard, made[number]) | {"index": index}, event="step"))
                    lines += [sse.message(chunk) for chunk in form.piece(index, heard, prompts[number])]
                yield b"".join(lines)
        _check_complete(finished, made)
        if options.include_usage:
            yield sse.message(form.usage_chunk(usage))
        yield sse.DONE

    # ---- our own form

    async def _native(self, job: Job, name: str, task: Mapping[str, Any] | None) -> Response:
        if job.streams:
            return await self._streamed(self._native_stream(job, task))
        found: dict[int, dict[str, Any]] = {}
        usage = Usage()
        async with sse.heard_of(self._backend, [job]) as numbered:
            async for _, batch in numbered:
                for heard in batch:
                    if isinstance(heard, Refused):
                        raise ApiError.of(heard)
                    if isinstance(heard, Accepted):
                        usage.add_prompt(heard)
                    elif isinstance(heard, Done):
                        self._count(heard, usage)
                        found[heard.sample] = await self._graded(native.done(heard, job), task)
        _check_complete(len(found), [job])
        answers = [found[sample] for sample in sorted(found)]
        body = {"object": name, "model": job.model, "seed": job.seed, name: answers, "usage": usage.as_json()}
        return JSONResponse(body)

    async def _native_stream(self, job: Job, task: Mapping[str, Any] | None) -> AsyncGenerator[bytes, None]:
        finished = 0
        async with sse.heard_of(self._backend, [job]) as numbered:
            async for _, batch in numbered:
                lines = []
                for heard in batch:
                    if isinstance(heard, Refused):
                        raise ApiError.of(heard)
                    if isinstance(heard, Stepped):
                        lines.append(sse.message(native.stepped(heard, job), event="step"))
                    elif isinstance(heard, Done):
                        self._count(heard, Usage())
                        finished += 1
                        answer = await self._graded(native.done(heard, job), task)
                        lines.append(sse.message(answer, event="done"))
                yield b"".join(lines)
        _check_complete(finished, [job])
        yield sse.DONE

    async def _streamed(self, lines: AsyncGenerator[bytes, None]) -> Response:
        """A stream, once it has begun well: a refusal before the first event is an answer with its own status."""
        try:
            first = await anext(lines)
        except BaseException:
            await lines.aclose()
            raise
        return StreamingResponse(_with_errors(first, lines), media_type="text/event-stream", headers=sse.HEADERS)

    # ---- what the endpoints share

    async def _model(self, body: Sampling) -> str:
        """Name of the model asked for; the backend refuses unknown ones."""
        return body.model or (await self._backend.models())[0].name

    def _card(self, card: ModelCard) -> dict[str, Any]:
        limits = self._limits
        return {
            "id": card.name,
            "object": "model",
            "created": 0,
            "owned_by": "unmask",
            "families": list(card.families),
            "max_length": card.max_length,
            "max_new_tokens": limits.max_new_tokens,
            "max_samples": limits.max_samples,
            "block_causal": card.block_causal,
            "block_length": card.block_length,
            "can_infill": card.can_infill,
            "weights_version": card.weights_version,
            "is_loaded": card.is_loaded,
        }

    def _count(self, done: Done, usage: Usage) -> None:
        self._metrics.answered(done)
        usage.add(done)

    def _check_task(self, task: Mapping[str, Any]) -> None:
        if self._grade is None:
            raise ApiError(400, "this server grades no answers; leave out task", code="no_grader", param="task")
        try:
            self._grade.check(task)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value", param="task") from None

    async def _graded(self, answer: dict[str, Any], task: Mapping[str, Any] | None) -> dict[str, Any]:
        if task is None or self._grade is None:
            return answer
        return answer | {"reward": dict(await asyncio.to_thread(self._grade, task, answer["text"]))}


async def _with_errors(first: bytes, lines: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The stream; an error after its beginning is an event, because the status has been sent."""
    async with _closing(lines):
        try:
            yield first
            async for line in lines:
                if line:
                    yield line
        except ApiError as error:
            yield sse.message(error.body(), event="error")


@asynccontextmanager
async def _closing(lines: AsyncGenerator[bytes, None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await lines.aclose()


def _check_complete(found: int, made: Sequence[Job]) -> None:
    """A backend that ends without its answers has lost them."""
    if found < sum(job.num_samples for job in made):
        raise ApiError.of(Refused("lost", "the engine was lost before the answer was finished; send the request again"))


async def _on_invalid(request: Request, error: RequestValidationError) -> Response:
    return invalid_body(error.errors(), _BODIES.get(request.url.path)).response()


async def _on_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _on_failure(request: Request, error: Exception) -> Response:
    """The cause goes to the log only, by the gate: a traceback tells paths."""
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error").response()


async def _on_http(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    made = ApiError(error.status_code, str(error.detail), code=code).response()
    made.headers.update(error.headers or {})
    return made


_STATUSES = {
    400: "The request is wrong; the message says what to change.",
    401: "The key is missing or wrong.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    429: "Too many requests at once; see Retry-After.",
    503: "The engine is full, was lost, or took too long; see Retry-After.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
