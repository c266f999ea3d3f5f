"""A worker whose memory grows without end is replaced between two batches, and is counted."""

import numpy as np
import pytest
import ray

from benchmarks.sketch import SketchWorker
from cluster import memory_watch
from cluster.actors import Launcher
from cluster.memory_watch import MIN_GROWTH_BYTES, MemoryWatch
from cluster.rollout_pool import RolloutPool
from cluster.transport import ObjectStoreTransport
from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt
from rollout.worker import own_memory

GIB = MIN_GROWTH_BYTES
MIB = 2**20


def test_the_bound_is_a_factor_of_the_first_memory_and_a_gigabyte_at_least():
    watch = MemoryWatch(2.0)
    # The largest of the first three counts: 4 GiB, so the bound is 8 GiB.
    assert [watch.report("a", size * GIB) for size in (1, 4, 3, 8)] == ["", "", "", ""]
    assert "above the bound of 8,589,934,592" in watch.report("a", 8 * GIB + 1)
    # 0.1 GiB at first: twice that is below a gigabyte more.
    assert [watch.report("b", size) for size in (GIB // 10, GIB // 10, GIB // 10, GIB)] == ["", "", "", ""]
    assert watch.report("b", 2 * GIB)
    watch.forget("b")
    assert watch.report("b", 2 * GIB) == ""


def test_what_is_unknown_or_not_asked_for_is_not_judged():
    assert [MemoryWatch(2.0).report("a", 0) for _ in range(9)] == [""] * 9
    never = MemoryWatch(None)
    assert [never.report("a", size * GIB) for size in (1, 1, 1, 100)] == [""] * 4


def test_own_memory_counts_what_is_allocated():
    before = own_memory()
    kept = np.ones(64 * MIB, dtype=np.uint8)
    assert 60 * MIB < own_memory() - before < 80 * MIB
    assert kept[-1] == 1


class Hoarder(SketchWorker):
    """Keeps some memory of every version."""

    def load(self):
        super().load()
        self.hoard = []

    def load_weights(self, named, version, serial=None):
        self.hoard.append(np.ones(20 * MIB, dtype=np.uint8))
        return super().load_weights(named, version, serial)


class Weights:
    """A learner that has nothing but weights."""

    def keep_weights(self):
        return ray.put(({"weight": np.zeros(8)},))


@pytest.mark.ray
def test_a_worker_that_hoards_is_replaced_and_serves_the_newest_weights(local_ray, monkeypatch):
    monkeypatch.setattr(memory_watch, "MIN_GROWTH_BYTES", 30 * MIB)
    transport = ObjectStoreTransport(Weights())
    settings = RolloutConfig(cpus_per_worker=0.5, max_memory_growth=1.01)
    pool = RolloutPool(ModelConfig(), settings, launcher=Launcher(mode="ray"), transport=transport, worker=Hoarder)
    pool.start()
    versions = []
    for version in range(1, 9):
        report = pool.sync(transport.publish(version))
        assert report == {} or report["pool/memory_bytes"] > MIB
        answers = pool.generate([Prompt(id="p#0", task="t", text="1+1=")], 1, 0, DecodingConfig())
        versions.append(answers[0][0].weights_version[1])
    assert versions == list(range(1, 9))
    # Reports of 1, 2, 3 pieces are the first; 4 is 20 MiB above, 5 is 40 MiB above and ends the process. The fresh
    # one takes the fifth version while it prepares itself, which is not judged, and reports from the sixth on.
    assert pool.num_restarts == 1
    assert pool.take_failures() == {"rollout_memory_growth": 1}
    pool.close()
