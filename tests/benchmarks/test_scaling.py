"""The simulated cluster keeps time as it should, so that what is left is the controller's own."""

import pytest

from benchmarks.scaling import fan_out, parser, simulate
from benchmarks.simulated import Clock, Times


def options(*arguments):
    load = "--steps 2 --prompts 4 --num-samples 4 --sigma 0"
    times = "--generate-s 10 --grade-s 1 --update-s 5 --publish-s 2 --load-s 3"
    return parser().parse_args([*load.split(), *times.split(), *arguments])


def test_a_step_takes_what_its_parts_take_when_the_controller_takes_nothing():
    # All four workers end at 10 s; their 16 prompts are graded one after the other by one grader, 1 s each; then the
    # update, the publishing and one load: 10 + 16 + 5 + 2 + 3.
    size = simulate(4, options(), counts_controller=False)
    assert size.step_s == pytest.approx(36, abs=1e-6)
    assert size.utilisation == pytest.approx(10 / 36)
    # a call of each worker, one a prompt to graders, three a worker for new weights
    assert size.calls == 4 + 16 + 3 * 4


def test_the_controller_and_ray_take_their_time():
    free = simulate(4, options(), counts_controller=False)
    size = simulate(4, options())
    assert size.cpu_s > 0
    # 340 microseconds for each of the 32 calls and of the one rank at least
    assert size.ray_s > 33 * 340e-6
    assert free.step_s < size.step_s <= free.step_s + size.cpu_s + size.ray_s + 1e-3
    assert 0 < size.busy < 1


def test_a_staleness_of_one_overlaps_generation_with_the_update():
    # Two workers with a grader that takes nothing: 10 to generate, 10 to update. Synchronous: 20 a step; with a
    # staleness of 1 the next answers are made during the update.
    given = ("--grade-s", "0", "--update-s", "10", "--publish-s", "0", "--load-s", "0", "--steps", "4")
    synchronous = simulate(2, options(*given), counts_controller=False)
    overlapped = simulate(2, options(*given, "--staleness", "1"), counts_controller=False)
    assert synchronous.step_s == pytest.approx(20)
    assert overlapped.step_s == pytest.approx(10, rel=0.15)


def test_calls_differ_by_worker_and_number_and_not_by_run():
    times = Times(10, 0.5, 1, 1)
    assert times.of_call("rollout-3", 1) == times.of_call("rollout-3", 1)
    assert len({times.of_call(f"rollout-{worker}", number) for worker in (1, 2) for number in (1, 2)}) == 4


def test_a_clock_counts_work_charges_and_waits():
    clock = Clock(counts_controller=False)
    clock.charge(5)
    clock.wait_until(3)
    clock.wait_until(2)
    assert clock.now() == 3
    counting = Clock()
    counting.charge(5)
    assert counting.now() >= 5


def test_weights_spread_in_rounds_that_double_who_has_them():
    lines = fan_out(parser().parse_args(["--workers", "8", "64", "--weights-gb", "10", "--gbps", "80"])).splitlines()
    # 10 GB at 80 Gbit/s take 1 s; one node: 1 s. Eight nodes: 8 s one by one, or 1 -> 2 -> 4 -> 8 -> 16 have it: 4 s
    assert lines[-2:] == ["| 8 | 1 | 1.0 | 1.0 |", "| 64 | 8 | 8.0 | 4.0 |"]
