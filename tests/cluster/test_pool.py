"""Lost workers are replaced and their work is done elsewhere; bad data is reported once and never retried."""

import pytest

from cluster.actors import Launcher
from cluster.calls import ActorError, CallFailure
from cluster.pool import MAX_RESTARTS
from tests.cluster.standins import SquarePool


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
