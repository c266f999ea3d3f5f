"""Lost workers are replaced and their work is done elsewhere; bad data is reported once and never retried."""

import time

import pytest

from cluster.actors import Launcher, wait
from cluster.calls import ActorError, ActorSpec, CallFailure
from cluster.pool import MAX_RESTARTS
from tests.cluster.standins import Counter, SquarePool


def local_pool(**options):
    pool = SquarePool(Launcher(mode="local"), **options)
    pool.start()
    return pool


def finish(pool, *pieces):
    for items in pieces:
        pool.submit(items)
    return pool.finish([item for items in pieces for item in items])


def test_results_come_in_the_order_of_the_items():
    pool = local_pool()
    assert finish(pool, [3, 1], [200], [70, 6]) == [9, 1, 40000, 4900, 36]
    assert pool.num_pending == 0
    assert pool.take_failures() == {}


def test_bad_data_fails_alone_and_is_not_retried():
    pool = local_pool()
    good, bad, other = finish(pool, [300, -1, 500])
    assert (good, other) == (90000, 250000)
    assert isinstance(bad, CallFailure)
    assert bad.why == "ValueError: -1 has no square here"
    # once for the three together, once for -1 alone
    assert pool.take_failures() == {"square_raised": 2}
    assert pool.num_restarts == 0


def test_a_killed_worker_is_replaced_and_its_work_is_done():
    pool = local_pool(num_workers=1)
    pool._members[0].handle.kill()
    assert finish(pool, [1000], [2000]) == [1000000, 4000000]
    assert pool.num_restarts == 1
    assert pool.take_failures() == {"square_actor_lost": 1}
    assert pool.num_ready == 1


def test_what_ends_while_others_are_awaited_is_left_for_collect():
    pool = local_pool(num_workers=1)
    pool.submit([1000])
    assert finish(pool, [2000]) == [4000000]
    assert pool.collect() == [(1000, 1000000)]


def test_a_worker_that_gives_the_wrong_answer_at_the_start_stops_it():
    with pytest.raises(ActorError, match=r"square-0\.prepare: raised .*it says 'ready', not 'steady'"):
        local_pool(num_workers=1, ready="steady")


def test_a_closed_pool_refuses_work():
    pool = local_pool(num_workers=1)
    pool.close()
    assert pool.num_ready == 0


@pytest.mark.ray
def test_killed_processes_lose_no_work(local_ray, tmp_path):
    pool = SquarePool(Launcher(mode="ray", log_dir=tmp_path), num_workers=2)
    pool.start()
    killers = [(number, str(tmp_path / f"seen-{number}")) for number in (11, 12)]
    assert finish(pool, [killers[0], 1000], [2000], [killers[1]], [3000]) == [121, 1000000, 4000000, 144, 9000000]
    assert pool.num_restarts == 2
    assert pool.take_failures() == {"square_actor_lost": 2}
    pool.close()


@pytest.mark.ray
def test_a_stuck_worker_is_replaced_and_its_item_given_up_after_the_last_retry(local_ray):
    pool = SquarePool(Launcher(mode="ray"), num_workers=1, max_retries=1)
    pool.start()
    stuck, good = finish(pool, ["nap"], [1000])
    assert isinstance(stuck, CallFailure)
    assert stuck.kind == "timeout"
    assert good == 1000000
    assert pool.take_failures() == {"square_timeout": 2}
    pool.close()


def test_a_worker_that_is_lost_again_and_again_ends_the_pool():
    pool = local_pool(num_workers=1, max_retries=100)

    def restart_without_success():
        pool._members[0].handle._shell = None

    pool._members[0].handle.restart = restart_without_success
    pool._members[0].handle.kill()
    with pytest.raises(ActorError, match=r"square-0.*actor_lost"):
        finish(pool, [1000])
    assert pool.num_restarts == MAX_RESTARTS


def test_an_item_that_kills_workers_takes_no_other_with_it():
    class Poisoned(SquarePool):
        def _call(self, handle, items):
            if 666 in items:
                handle.kill()
            return super()._call(handle, items)

    pool = Poisoned(Launcher(mode="local"), num_workers=1, max_retries=2)
    pool.start()
    good, bad, other = finish(pool, [3, 666, 5])
    assert (good, other) == (9, 25)
    assert isinstance(bad, CallFailure)
    assert bad.kind == "actor_lost"
    # the three together twice, then 666 alone: three tries, as max_retries 2 says
    assert pool.take_failures() == {"square_actor_lost": 3}


def test_abandoned_work_is_thrown_away_and_the_pool_goes_on():
    pool = local_pool(num_workers=1)
    pool.submit([1000])
    pool.submit([2000])
    pool.abandon()
    assert finish(pool, [3]) == [9]
    assert pool.collect() == []


@pytest.mark.ray
def test_a_late_call_is_made_again_on_an_idle_worker_and_the_first_answer_wins(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.pool.MIN_STRAGGLER_S", 0.1)
    marker = tmp_path / "go on"
    started = []

    class Uneven(SquarePool):
        def _call(self, handle, items):
            started.append(handle.name)
            if items == (7,) and started.count("stuck") == 0:
                started.append("stuck")
                return handle.call("wait_for", str(marker), timeout_s=100)
            return super()._call(handle, items)

    pool = Uneven(Launcher(mode="ray"), num_workers=2)
    pool._straggler_factor = 2.0
    pool.start()
    finish(pool, *[[number] for number in range(8) if number != 7])
    pool.submit([7])
    until = time.monotonic() + 60
    while not (ended := pool.collect()):
        assert time.monotonic() < until
        wait(pool.futures(), timeout_s=0.1)
    assert ended == [(7, 49)]
    assert pool.num_reissued == 1
    marker.touch()  # the first call ends now, and nobody hears of it
    while pool.num_pending:
        assert time.monotonic() < until
        wait(pool.futures(), timeout_s=0.1)
        assert pool.collect() == []
    pool.close()


def placed(pool, monkeypatch, *, room):
    """A pool whose workers hold made-up places; `room` says which of them lie on a living machine."""
    for name in ("cluster.pool.is_placed", "cluster.places.is_placed"):
        monkeypatch.setattr(name, lambda place: room[place])
    monkeypatch.setattr("cluster.places.LOOK_S", 0.01)
    for index, member in enumerate(pool._members):
        member.place = index
    return pool


def test_a_worker_without_a_machine_waits_for_one_while_the_others_work(monkeypatch):
    room = {0: True, 1: True}
    pool = placed(local_pool(), monkeypatch, room=room)
    room[1] = False
    pool._members[1].handle.kill()
    assert finish(pool, [3], [4], [5]) == [9, 16, 25]
    assert pool.num_ready == 1
    assert "square-1 waits for a machine" in "\n".join(pool.describe())
    assert pool.num_restarts == 0
    pool._place_timeout_s, num_ended = 0.0, pool.num_ended
    for _ in range(3):
        time.sleep(0.02)
        pool.collect()
    # The wait may be as long as it likes and is no sign of life, while another one works.
    assert pool.num_ended == num_ended
    assert pool._members[1].is_stranded
    room[1] = True
    time.sleep(0.02)
    assert finish(pool, [6], [7]) == [36, 49]
    assert pool.num_ready == 2
    assert pool.num_restarts == 1


def test_the_last_worker_without_a_machine_ends_the_pool_after_a_while(monkeypatch):
    room = {0: True}
    pool = placed(local_pool(num_workers=1), monkeypatch, room=room)
    pool._place_timeout_s = 0.05
    room[0] = False
    pool._members[0].handle.kill()
    with pytest.raises(ActorError, match=r"square-0\.place: timeout .*no other had room for it within 0\.05 s"):
        finish(pool, [3])


def test_a_worker_joins_once_and_is_given_work_when_it_is_prepared():
    asked = []

    class Growing(SquarePool):
        def _more(self):
            return ActorSpec("square-1", Counter) if len(self._members) < 2 else None

        def _prepare(self, handle):
            asked.append(handle.name)
            return super()._prepare(handle)

    pool = Growing(Launcher(mode="local"), num_workers=1)
    pool.start()
    assert finish(pool, [3], [4]) == [9, 16]
    assert finish(pool, [5], [6]) == [25, 36]
    assert asked == ["square-0", "square-1"]
    assert pool.num_joined == 1
    assert pool.num_ready == 2
