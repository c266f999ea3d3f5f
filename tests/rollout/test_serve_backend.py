"""What the HTTP side makes of engines that are lost, late or full; the engines here are scripts, not Ray's."""

import asyncio

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from rollout.serve import RayBackend, ServeConfig
from rollout.service.work import Accepted, Done, Job, Refused, Stepped

ACCEPTED = Accepted(3, "1+1")
STEP = Stepped(0, 0, 1, [0], [5], ["2"], [-0.1], [0.2], "2")
DONE = Done(0, "2", "", 1, [5], ["2"], [0], [-0.1], [0.2], 1, 1, "eos", (0, 0), True, "ar")
JOB = Job("m", seed=1, text="1+1", max_new_tokens=1, timeout_s=0.5)


class Engines:
    """A handle whose calls follow a script each: batches, an exception in their place, or `None` to wait."""

    def __init__(self, *scripts) -> None:
        self.scripts, self.calls, self.cancelled = list(scripts), 0, 0
        self.run = self

    def options(self, **_) -> "Engines":
        return self

    def remote(self, job: Job) -> "Answer":
        self.calls += 1
        return Answer(self, self.scripts.pop(0))


class Answer:
    def __init__(self, engines: Engines, script) -> None:
        self._engines, self._script = engines, list(script)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self):
        if not self._script:
            raise StopAsyncIteration
        what = self._script.pop(0)
        if what is None:
            await asyncio.Event().wait()
        if isinstance(what, Exception):
            raise what
        return what

    def cancel(self) -> None:
        self._engines.cancelled += 1


def heard(engines: Engines, job: Job = JOB) -> list:
    async def main() -> list:
        return [one async for batch in RayBackend(engines, ["m"]).run(job) for one in batch]

    return asyncio.run(main())


def test_all_that_an_engine_says_is_heard() -> None:
    engines = Engines([[ACCEPTED], [STEP], [DONE]])
    assert heard(engines) == [ACCEPTED, STEP, DONE]
    assert (engines.calls, engines.cancelled) == (1, 0)


@pytest.mark.parametrize("loss", [RayActorError(), [Refused("lost", "it shuts down")]])
def test_an_engine_lost_before_its_first_step_is_replaced_unseen(loss) -> None:
    engines = Engines([[ACCEPTED], loss], [[ACCEPTED], [STEP, DONE]])
    assert heard(engines) == [ACCEPTED, STEP, DONE]
    assert engines.calls == 2


def test_an_engine_lost_in_the_middle_ends_the_answer_with_a_retryable_refusal() -> None:
    engines = Engines([[ACCEPTED], [STEP], RayActorError()], [[DONE]])
    *told, last = heard(engines)
    assert told == [ACCEPTED, STEP]
    assert last.kind == "lost"
    assert engines.calls == 1


def test_engines_that_are_lost_again_and_again_are_given_up() -> None:
    engines = Engines(*[[RayActorError()]] * 9)
    assert [one.kind for one in heard(engines)] == ["lost"]
    assert engines.calls == 3


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([BackPressureError(1, 1)], "overloaded"),
        ([[ACCEPTED], None], "timeout"),
        ([[Refused("failed", "x")]], "failed"),
    ],
)
def test_what_another_engine_would_not_mend_is_told_at_once(script, kind) -> None:
    engines = Engines(script, [[DONE]])
    assert heard(engines)[-1].kind == kind
    assert engines.calls == 1


def test_leaving_calls_the_engine_off() -> None:
    engines = Engines([[ACCEPTED], None])

    async def main() -> None:
        stream = RayBackend(engines, ["m"]).run(JOB)
        assert await anext(stream) == [ACCEPTED]
        await stream.aclose()

    asyncio.run(main())
    assert engines.cancelled == 1


def test_unknown_models_go_nowhere() -> None:
    engines = Engines()
    (refused,) = heard(engines, Job("n", seed=1, text="1", max_new_tokens=1))
    assert (refused.kind, refused.param) == ("unknown_model", "model")
    assert engines.calls == 0


def test_an_engine_that_is_to_go_has_longer_than_a_request_may_take() -> None:
    config = ServeConfig.model_validate({"service": {"limits": {"request_timeout_s": 300}}})
    assert config.patience_s > 300
    assert ServeConfig(drain_s=5).patience_s == 5
