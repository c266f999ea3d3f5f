"""The HTTP interface as an ASGI application around a backend; it knows nothing of Ray or of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rollout.service import catalog, jobs
from rollout.service.answers import Answers, Grade
from rollout.service.config import ServiceConfig
from rollout.service.errors import ApiError, invalid_body
from rollout.service.gate import App, Gate
from rollout.service.metrics import Metrics
from rollout.service.native import NativeForm
from rollout.service.openai import OpenAIForm
from rollout.service.schemas import ChatBody, CompletionBody, InfillBody, RolloutBody, Sampling
from rollout.service.work import Backend, Job, ModelCard

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


class _Routes:
    """The endpoints."""

    def __init__(self, backend: Backend, config: ServiceConfig, metrics: Metrics, grade: Grade | None) -> None:
        self._backend, self._limits, self._metrics = backend, config.limits, metrics
        self._answers = Answers(backend, metrics, grade)

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
        return await self._openai(body, jobs.completion_jobs(body, self._limits, **await self._named(body)))

    async def chat(self, body: ChatBody) -> Response:
        """Answer a chat."""
        return await self._openai(body, [jobs.chat_job(body, self._limits, **await self._named(body))])

    async def rollouts(self, body: RolloutBody) -> Response:
        """Samples of one prompt with their step maps, log-probabilities and weights version."""
        if body.task is not None:
            self._answers.check_task(body.task)
        job = jobs.rollout_job(body, self._limits, **await self._named(body))
        return await self._answers.respond([job], NativeForm(job), stream=body.stream, task=body.task)

    async def infill(self, body: InfillBody) -> Response:
        """Fill holes between texts."""
        job = jobs.infill_job(body, self._limits, **await self._named(body))
        return await self._answers.respond([job], NativeForm(job), stream=body.stream)

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

    async def _openai(self, body: CompletionBody | ChatBody, made: Sequence[Job]) -> Response:
        return await self._answers.respond(made, OpenAIForm.of(body, made), stream=body.stream)

    async def _named(self, body: Sampling) -> dict[str, Any]:
        """Model and seed asked for, or the defaults; the backend refuses unknown models."""
        return {"model": body.model or (await self._backend.models())[0].name, "seed": jobs.seed_of(body)}

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
