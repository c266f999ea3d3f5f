"""Answers do not depend on workers, and only workers that report the right weights make them."""

from dataclasses import replace

import pytest

import models
from cluster.actors import Launcher
from cluster.calls import ActorError, KeptValue
from cluster.rollout_pool import RolloutPool
from cluster.transport import MAX_VERSIONS, ObjectStoreTransport
from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt

LOCAL = Launcher(mode="local")
DECODING = DecodingConfig(max_new_tokens=5, temperature=1.0)
PROMPTS = [Prompt(id=f"p{number}#0", task="t", text=f"{number}+1=") for number in range(5)]


class TrainedWeights:
    """A learner that has nothing but weights: those of a model made from a seed."""

    def __init__(self, folder):
        self._config = models.read_config(folder)
        self.num_published = 0

    def keep_weights(self):
        self.num_published += 1
        fresh = models.create(self._config, seed=100 + self.num_published)
        return KeptValue(({name: value.detach().numpy() for name, value in fresh.backbone.named_parameters()},))


def started(folder, transport=None, kind=RolloutPool, **settings):
    rollout = RolloutConfig(**settings)
    pool = kind(ModelConfig(path=str(folder)), rollout, launcher=LOCAL, transport=transport)
    pool.start()
    return pool


def tokens(answers):
    return [[trajectory.tokens.tolist() for trajectory in group] for group in answers]


def test_answers_are_the_same_with_one_worker_and_with_three(small_model):
    one, three = started(small_model), started(small_model, num_workers=3)
    answers = [pool.generate(PROMPTS, 2, 9, DECODING) for pool in (one, three)]
    assert tokens(answers[0]) == tokens(answers[1])
    assert [group[0].prompt_id for group in answers[1]] == [prompt.id for prompt in PROMPTS]


def test_prompts_are_shared_evenly_by_the_workers_that_are_ready(small_model):
    sizes = []

    class Watched(RolloutPool):
        def _call(self, handle, items):
            sizes.append((handle.name, len(items)))
            return super()._call(handle, items)

    started(small_model, num_workers=2, kind=Watched).generate(PROMPTS, 1, 9, DECODING)
    assert sizes == [("rollout-0", 3), ("rollout-1", 2)]


def test_new_weights_are_served_by_every_worker_under_their_version(small_model):
    transport = ObjectStoreTransport(TrainedWeights(small_model))
    pool = started(small_model, transport, num_workers=2)
    before = pool.generate(PROMPTS, 1, 9, DECODING)
    report = pool.sync(transport.publish(1))
    after = pool.generate(PROMPTS, 1, 9, DECODING)
    assert {group[0].weights_version for group in before} == {(0, 0)}
    assert {group[0].weights_version for group in after} == {(1, 1)}
    assert tokens(before) != tokens(after)
    num_parameters = sum(p.numel() for p in models.load(small_model).backbone.parameters())
    assert report["weights/bytes"] == 4 * num_parameters
    assert report["weights/load_p95_s"] >= 0
    assert report["weights/swap_p95_s"] > 0


def test_a_lost_worker_comes_back_with_the_newest_weights(small_model):
    transport = ObjectStoreTransport(TrainedWeights(small_model))
    pool = started(small_model, transport)
    pool.sync(transport.publish(1))
    pool.sync(transport.publish(2))
    before = pool.generate(PROMPTS, 1, 9, DECODING)
    pool._members[0].handle.kill()
    after = pool.generate(PROMPTS, 1, 9, DECODING)
    assert pool.num_restarts == 1
    assert after[0][0].weights_version == (2, 2)
    assert tokens(after) == tokens(before)


def test_a_worker_lost_before_new_weights_arrive_takes_them_when_it_is_back(small_model):
    transport = ObjectStoreTransport(TrainedWeights(small_model))
    pool = started(small_model, transport, num_workers=2)
    pool._members[1].handle.kill()
    pool.sync(transport.publish(1))
    answers = pool.generate(PROMPTS, 1, 9, DECODING)
    assert {group[0].weights_version for group in answers} == {(1, 1)}
    assert pool.num_restarts == 1


def test_a_prompt_that_cannot_be_answered_fails_alone(small_model):
    pool = started(small_model)
    too_long = Prompt(id="long#0", task="t", text="1" * 600)
    answers = pool.generate([PROMPTS[0], too_long, PROMPTS[1]], 2, 9, DECODING)
    assert [len(group) for group in answers] == [2, 0, 2]
    assert pool.take_failures() == {"rollout_raised": 2}


def test_a_missing_model_stops_the_start(tmp_path):
    with pytest.raises(ActorError, match=r"rollout-0\.load: raised .*no such folder"):
        started(tmp_path / "absent")


def test_a_worker_with_other_weights_than_the_pool_wants_is_not_ready(small_model):
    class WrongVersion(ObjectStoreTransport):
        def send(self, handle, published, **options):
            return super().send(handle, replace(published, version=3), **options)

    transport = WrongVersion(TrainedWeights(small_model))
    pool = started(small_model, transport)
    with pytest.raises(ActorError, match="it has weights 3, and should have 4"):
        pool.sync(transport.publish(4))


def test_transport_keeps_two_versions_and_counts_up(small_model):
    transport = ObjectStoreTransport(TrainedWeights(small_model))
    for version in (1, 2, 5):
        transport.publish(version)
    assert [published.version for published in transport._versions] == [2, 5]
    assert len(transport._versions) == MAX_VERSIONS
    with pytest.raises(ValueError, match="weights version 5 must be above 5"):
        transport.publish(5)


def test_a_worker_that_was_still_loading_when_weights_came_takes_them_before_it_serves(small_model):
    transport = ObjectStoreTransport(TrainedWeights(small_model))
    pool = RolloutPool(ModelConfig(path=str(small_model)), RolloutConfig(), launcher=LOCAL, transport=transport)
    pool.begin()
    pool.sync(transport.publish(1))
    assert pool._members[0].handle.call("version", timeout_s=1).result() == 1
    assert pool.generate(PROMPTS, 1, 9, DECODING)[0][0].weights_version == (1, 1)
