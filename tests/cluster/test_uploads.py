"""Uploads in the background: order, bound, rest after a failure, and the last try."""

import threading
import time

from cluster.uploads import Uploads


class StoreDownError(Exception):
    """What the stand-in store raises."""


def make_uploads(open_store=lambda: None, **options):
    return Uploads(open_store, errors=(StoreDownError,), **{"pause_s": 0.01, **options})


def test_jobs_are_sent_in_order_and_close_waits_for_them():
    sent = []
    uploads = make_uploads()
    assert uploads.start(timeout_s=5)
    for number in range(50):
        uploads.put(str(number), lambda number=number: sent.append(number))
    assert uploads.close(timeout_s=5) == 0
    assert sent == list(range(50))


def test_a_store_that_hangs_holds_up_neither_put_nor_close():
    release = threading.Event()
    uploads = make_uploads(release.wait)
    began = time.monotonic()
    assert not uploads.start(timeout_s=0.1)
    for number in range(10):
        assert uploads.put(str(number), lambda: None)
    assert uploads.close(timeout_s=0.1) == 10
    assert time.monotonic() - began < 5
    release.set()


def test_a_store_that_opens_at_the_third_try_gets_everything():
    tries, sent = [], []

    def open_store():
        tries.append(1)
        if len(tries) < 3:
            raise StoreDownError("not yet")

    uploads = make_uploads(open_store)
    assert not uploads.start(timeout_s=5)
    uploads.put("job", lambda: sent.append("job"))
    wait_until(lambda: sent == ["job"])
    assert uploads.close(timeout_s=5) == 0
    assert (len(tries), uploads.num_failures) == (3, 2)


def test_a_job_that_always_fails_does_not_block_the_ones_behind_it(caplog):
    sent = []

    def fail():
        raise StoreDownError("no such file")

    uploads = make_uploads()
    uploads.start(timeout_s=5)
    uploads.put("bad", fail)
    uploads.put("good", lambda: sent.append("good"))
    wait_until(lambda: sent == ["good"])
    assert uploads.close(timeout_s=5) == 1
    # two failures before it was put aside and one in the last try, but a single warning
    assert uploads.num_failures == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "bad" in caplog.text
    assert "no such file" in caplog.text


def test_a_full_queue_refuses_a_job_unless_it_is_forced():
    release = threading.Event()
    uploads = make_uploads(release.wait, max_pending=1)
    uploads.start(timeout_s=0.01)
    assert uploads.put("first", lambda: None)
    assert not uploads.put("second", lambda: None)
    assert uploads.put("status", lambda: None, force=True)
    release.set()
    assert uploads.close(timeout_s=5) == 0


def test_the_latest_of_several_waiting_jobs_of_one_name_is_the_only_one_sent():
    release = threading.Event()
    sent = []
    uploads = make_uploads(release.wait)
    uploads.start(timeout_s=0.01)
    for number in range(3):
        uploads.put("picture", lambda number=number: sent.append(number), only_latest=True)
    uploads.put("other", lambda: sent.append("other"))
    release.set()
    assert uploads.close(timeout_s=5) == 0
    assert sent == [2, "other"]


def test_the_last_try_gives_up_after_three_failures_in_a_row():
    tries = []

    def fail():
        tries.append(1)
        raise StoreDownError("gone")

    uploads = make_uploads(pause_s=60)
    uploads.start(timeout_s=5)
    for number in range(20):
        uploads.put(str(number), fail)
    wait_until(lambda: tries)
    assert uploads.close(timeout_s=5) == 20
    assert len(tries) == 1 + 3


def wait_until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)
