"""One way to call a worker in both modes; what goes wrong comes back as a value that says who, where and why."""

import os
import time

import pytest

from cluster.actors import Launcher, wait
from cluster.calls import ActorError, ActorInfo, ActorSpec, CallFailure
from tests.cluster.standins import Counter

START_S = 60


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def launcher(request, tmp_path):
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    return Launcher(mode=request.param, log_dir=tmp_path)


def test_an_actor_keeps_its_state_between_calls(launcher):
    handle = launcher.launch(ActorSpec("counter-0", Counter, (5,)))
    assert handle.call("add", 2, timeout_s=START_S).result() == 7
    assert handle.call("add", amount=1, timeout_s=START_S).result() == 8
    handle.kill()


def test_an_exception_becomes_a_value_with_its_text_and_place(launcher):
    handle = launcher.launch(ActorSpec("counter-0", Counter))
    future = handle.call("square_all", [1, -1], timeout_s=START_S)
    failure = future.outcome()
    assert isinstance(failure, CallFailure)
    assert (failure.kind, failure.actor, failure.method) == ("raised", "counter-0", "square_all")
    assert failure.why == "ValueError: -1 has no square here"
    assert not failure.is_infrastructure
    assert "square_all" in failure.log_tail
    with pytest.raises(ActorError, match=r"counter-0\.square_all: raised \(pid \d+ on .*-1 has no square here"):
        future.result()
    assert handle.call("add", 1, timeout_s=START_S).result() == 1
    handle.kill()


def test_an_error_of_the_constructor_is_the_outcome_of_the_first_call(launcher):
    handle = launcher.launch(ActorSpec("counter-0", Counter, (-1,)))
    failure = handle.call("add", 1, timeout_s=START_S).outcome()
    assert failure.kind == "raised"
    assert "start is -1; it must be at least 0" in failure.why
    handle.kill()


def failure_of(handle, timeout_s=30):
    """What a call ends with once the actor is gone: Ray kills in the background and may still answer one."""
    until = time.monotonic() + timeout_s
    while not isinstance(outcome := handle.call("add", 1, timeout_s=START_S).outcome(), CallFailure):
        assert time.monotonic() < until, f"still answers: {outcome}"
    return outcome


def test_a_killed_actor_answers_again_after_a_restart_without_its_state(launcher):
    handle = launcher.launch(ActorSpec("counter-0", Counter, (5,)))
    assert handle.call("add", 1, timeout_s=START_S).result() == 6
    handle.kill()
    failure = failure_of(handle)
    assert failure.kind == "actor_lost"
    assert failure.is_infrastructure
    handle.restart()
    assert handle.call("add", 1, timeout_s=START_S).result() == 6
    handle.kill()


def test_a_kept_value_reaches_other_actors_and_outlives_its_maker(launcher):
    maker, reader = (launcher.launch(ActorSpec(f"counter-{index}", Counter)) for index in range(2))
    reference = maker.call("array", 1000, timeout_s=START_S, keep=True).result()
    maker.kill()
    assert not isinstance(reference, dict)
    assert reader.call("total", reference, timeout_s=START_S).result() == 999 * 1000 // 2
    assert failure_of(maker).kind == "actor_lost"
    reader.kill()


def test_wait_splits_calls_into_ended_and_running(launcher):
    handles = [launcher.launch(ActorSpec(f"counter-{index}", Counter)) for index in range(2)]
    futures = [handle.call("add", index, timeout_s=START_S) for index, handle in enumerate(handles)]
    ended, running = [], futures
    while running:
        now, running = wait(running, timeout_s=START_S)
        ended += now
    assert sorted(future.outcome() for future in ended) == [0, 1]
    assert wait([], timeout_s=START_S) == ([], [])
    for handle in handles:
        handle.kill()


def test_a_lane_may_be_named_in_both_modes(launcher):
    handle = launcher.launch(ActorSpec("counter-0", Counter, (5,)))
    futures = [handle.call("add", 1, timeout_s=START_S, lane=lane) for lane in ("transfer", "work")]
    assert sorted(future.result() for future in futures) == [6, 7]
    handle.kill()


def test_local_mode_runs_in_this_process():
    handle = Launcher(mode="local").launch(ActorSpec("counter-0", Counter))
    assert handle.call("pid", timeout_s=1).result() == os.getpid()
    assert handle.health(timeout_s=1) == ActorInfo(os.getpid(), os.uname().nodename)


@pytest.mark.ray
def test_a_late_call_fails_in_time_while_health_still_answers(local_ray):
    handle = Launcher(mode="ray").launch(ActorSpec("counter-0", Counter))
    assert handle.call("add", 1, timeout_s=START_S).result() == 1
    late = handle.call("nap", 600, timeout_s=1)
    assert isinstance(handle.health(timeout_s=START_S), ActorInfo)
    ended, _ = wait([late], timeout_s=START_S)
    assert ended[0].outcome().kind == "timeout"
    assert ended[0].outcome().why == "no answer within 1 s"
    handle.kill()


@pytest.mark.ray
def test_a_dead_process_is_named_and_its_log_is_quoted(local_ray, tmp_path):
    handle = Launcher(mode="ray", log_dir=tmp_path).launch(ActorSpec("counter-7", Counter))
    handle.call("square_all", [-1], timeout_s=START_S).outcome()
    pid = handle.call("pid", timeout_s=START_S).result()
    failure = handle.call("die", timeout_s=START_S).outcome()
    assert failure.kind == "actor_lost"
    assert failure.where == f"pid {pid} on {os.uname().nodename}"
    assert "ValueError: -1 has no square here" in failure.log_tail
    assert (tmp_path / "counter-7.log").exists()
    assert handle.health(timeout_s=5).kind == "actor_lost"


@pytest.mark.ray
def test_an_actor_without_the_log_folder_works_and_writes_none(local_ray, tmp_path):
    handle = Launcher(mode="ray", log_dir=tmp_path / "elsewhere").launch(ActorSpec("counter-0", Counter))
    assert handle.call("add", 1, timeout_s=START_S).result() == 1
    assert not (tmp_path / "elsewhere").exists()
    handle.kill()


@pytest.mark.ray
def test_a_call_of_the_transfer_lane_runs_beside_work(local_ray, tmp_path):
    handle = Launcher(mode="ray").launch(ActorSpec("counter-0", Counter))
    marker = tmp_path / "goes on"
    waiting = handle.call("wait_for", str(marker), timeout_s=START_S)
    assert handle.call("add", 1, timeout_s=START_S, lane="transfer").result() == 1
    assert not waiting.is_done()
    marker.touch()
    assert waiting.result() == "seen"
    handle.kill()


@pytest.mark.ray
def test_a_kept_value_is_what_it_was_when_the_call_returned(local_ray):
    handle = Launcher(mode="ray").launch(ActorSpec("counter-0", Counter))
    size = 2**24
    kept = handle.call("own_array", size, timeout_s=START_S, keep=True)
    overwritten = handle.call("overwrite", timeout_s=START_S)
    reader = Launcher(mode="ray").launch(ActorSpec("counter-1", Counter))
    assert overwritten.result() is None
    assert reader.call("total_of", kept.result(), timeout_s=START_S).result() == 0
    for actor in (handle, reader):
        actor.kill()
