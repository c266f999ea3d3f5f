"""Requests made from the service's own OpenAPI document: every answer is a documented one, the engine is idle after.

Schemathesis draws bodies that fit the schema and bodies that do not, and holds each answer against the document:
status, content type, form of errors; no server error and no hang.
"""

import asyncio
import time

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")

POSTS = ("/v1/completions", "/v1/chat/completions", "/v1/rollouts", "/v1/infill")
GETS = ("/v1/models", "/v1/models/{name}", "/v1/samplers", "/healthz")
REQUEST_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def served():
    """A service with low limits, so that right requests are quick, and its host."""
    from rollout.service.config import Limits, ServiceConfig
    from rollout.service.local import local_app, running

    limits = Limits(max_new_tokens=64, max_samples=3, max_prompts=3)
    app, host = local_app({"tiny": "tiny"}, service=ServiceConfig(limits=limits))
    with running(app) as address:
        yield address, host


@pytest.fixture(scope="module")
def document(served):
    return schemathesis.openapi.from_url(f"{served[0]}/openapi.json")


def probe(operation, mode, num_examples):
    """Draw requests and hold their answers against the document; gives the statuses that were seen."""
    seen = set()

    # What the schema cannot say (give prompt or messages, names of samplers) makes some well-formed bodies a 400.
    beyond_schema = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=num_examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def answered(case):
        response = case.call(timeout=REQUEST_TIMEOUT_S)
        seen.add(response.status_code)
        if response.status_code == 503:
            assert "Retry-After" in response.headers
            return
        case.validate_response(response, excluded_checks=beyond_schema)

    answered()
    return seen


def assert_idle(host):
    end = time.monotonic() + REQUEST_TIMEOUT_S
    while time.monotonic() < end:
        if all(state.active == state.waiting == 0 for state in asyncio.run(host.states())):
            return
        time.sleep(0.05)
    raise AssertionError("the engine still works on what nobody waits for")


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", POSTS)
def test_bodies_drawn_from_the_schema_are_answered_as_documented(served, document, path, mode):
    seen = probe(document[path]["POST"], schemathesis.GenerationMode(mode), 12)
    assert seen <= {200, 400, 404, 413, 422, 503}
    assert_idle(served[1])


@pytest.mark.parametrize("path", GETS)
def test_lists_and_health_are_as_documented(document, path):
    assert probe(document[path]["GET"], schemathesis.GenerationMode.POSITIVE, 5) <= {200, 404}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", POSTS)
def test_two_thousand_bodies_drawn_from_the_schema(served, document, path, mode):
    assert probe(document[path]["POST"], schemathesis.GenerationMode(mode), 275) <= {200, 400, 404, 413, 422, 503}
    assert_idle(served[1])
