"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`, the fix in the message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from rollout.service.work import Refused

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_STATUS_OF = {
    "invalid": (400, "invalid_value"),
    "too_long": (400, "context_length_exceeded"),
    "unknown_model": (404, "model_not_found"),
    "overloaded": (503, "engine_overloaded"),
    "timeout": (503, "timeout"),
    "lost": (503, "engine_lost"),
    "failed": (503, "engine_failed"),
}
_SHOWN = 80
_BRANCHES = ("str", "int", "SamplerChoice", "TextSegment", "HoleSegment")


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    @staticmethod
    def of(refused: Refused) -> ApiError:
        """The same as an answer."""
        status, code = _STATUS_OF[refused.kind]
        retry = 1 if status == 503 else None
        return ApiError(status, refused.why, code=code, param=refused.param, retry_after_s=retry)

    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": clean(self.message), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The HTTP answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def clean(text: str) -> str:
    """Text that can be sent: half surrogates, which JSON can smuggle in, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def invalid_body(errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None) -> ApiError:
    """The first thing that is wrong with a body, with what is allowed."""
    first: Mapping[str, Any] = min(errors, key=_rank)
    kind, place = first["type"], first["loc"][1:]
    # An unknown field may be called anything; it is the last part of its place.
    named = place[-1:] if kind == "extra_forbidden" else ()
    where = [str(part) for part in place[: len(place) - len(named)] if not _is_branch(part)] + [*map(str, named)]
    param = clean(".".join(where))[:_SHOWN] or None
    if kind == "extra_forbidden":
        return ApiError(400, _unknown_field(where, model), code="unknown_field", param=param)
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", code="invalid_json")
    if kind == "missing":
        message = f"{param} is required" if param else 'a JSON body is required, sent as "application/json"'
        return ApiError(400, message, code="missing_field", param=param)
    if not where and kind.startswith("model_"):
        return ApiError(
            400, "the body must be a JSON object, sent with Content-Type: application/json", code="invalid_json"
        )
    what = str(first["msg"]).removeprefix("Value error, ")
    seen = "" if where == [] else f"{param} is {_short(first.get('input'))}: "
    return ApiError(400, f"{seen}{what}", code="invalid_value", param=param)


def _rank(error: Mapping[str, Any]) -> int:
    """What to tell first: a field's own words, then an unknown field, then whatever a type did not match."""
    order = ("value_error", "extra_forbidden")
    return order.index(error["type"]) if error["type"] in order else len(order)


def _is_branch(part: object) -> bool:
    """Whether a part of a place names an alternative of a union rather than a field."""
    return isinstance(part, str) and (not part.isidentifier() or part in _BRANCHES)


def _unknown_field(where: Sequence[str], model: type[BaseModel] | None) -> str:
    name = where[-1]
    known = list(model.model_fields) if model is not None and len(where) == 1 else []
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" Known fields: {', '.join(sorted(known))}" if known else ""
    return f"unknown field {'.'.join(where)[:_SHOWN]!r}{hint}{listed}"


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
