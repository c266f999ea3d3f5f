"""A rollout worker answers by seed and id alone, and serves exactly the weights that it reports."""

import numpy as np
import pytest
import torch

import models
from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt
from rollout.worker import NOT_LOADED, RolloutWorker

DECODING = DecodingConfig(max_new_tokens=6, block_length=3, temperature=1.0)
PROMPTS = [Prompt(id="a#0", task="t", text="1+1="), Prompt(id="b#0", task="t", text="what is 12*3? ")]


@pytest.fixture(scope="module")
def worker(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    worker.load()
    return worker


def generate(worker, prompts, *, num_samples=3, seed=5):
    return worker.generate(prompts, num_samples=num_samples, seed=seed, decoding=DECODING)


def random_weights(worker, seed):
    generator = torch.Generator().manual_seed(seed)
    named = dict(worker._denoiser.backbone.named_parameters())
    return {name: torch.randn(value.shape, generator=generator).numpy() for name, value in named.items()}


def test_answers_come_per_prompt_with_their_text_and_their_names(worker):
    groups = generate(worker, PROMPTS)
    assert [[(t.prompt_id, t.sample_index) for t in group] for group in groups] == [
        [("a#0", 0), ("a#0", 1), ("a#0", 2)],
        [("b#0", 0), ("b#0", 1), ("b#0", 2)],
    ]
    answer = groups[1][2]
    assert answer.text == models.decode_answer(worker._denoiser, answer.tokens[: answer.answer_length].tolist())
    assert "what is" not in answer.text
    assert answer.weights_version == (0, 0)


def test_answer_does_not_depend_on_what_else_the_worker_is_given(worker):
    together = generate(worker, PROMPTS)
    alone = generate(worker, PROMPTS[1:])
    assert [t.tokens.tolist() for t in alone[0]] == [t.tokens.tolist() for t in together[1]]
    assert len({tuple(t.tokens.tolist()) for t in together[1]}) > 1


def test_seed_and_visit_change_the_answer(worker):
    again = Prompt(id="a#1", task="t", text=PROMPTS[0].text)
    answers = [generate(worker, [PROMPTS[0]]), generate(worker, [again]), generate(worker, [PROMPTS[0]], seed=6)]
    seeds = [group[0].seed for (group,) in answers]
    assert len(set(seeds)) == 3


def test_worker_reports_the_version_it_serves(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    assert worker.version() == NOT_LOADED
    worker.load()
    assert worker.version() == 0
    swap = worker.load_weights(random_weights(worker, 1), 4)
    assert worker.version() == 4
    assert swap.num_bytes == sum(p.numel() * 4 for p in worker._denoiser.backbone.parameters())
    assert swap.seconds > 0
    assert generate(worker, PROMPTS)[0][0].weights_version == (4, 4)


def test_bfloat16_weights_travel_as_integers_in_several_parts(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    worker.load()
    wanted = {name: torch.from_numpy(array).bfloat16() for name, array in random_weights(worker, 2).items()}
    arrays = [{name: value.view(torch.uint16).numpy()} for name, value in wanted.items()]
    worker.load_weights(tuple(arrays), 1)
    for name, parameter in worker._denoiser.backbone.named_parameters():
        assert torch.equal(parameter, wanted[name].float()), name


def test_fetched_weights_are_not_used_before_they_are_loaded(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    worker.load()
    before = [t.tokens.tolist() for t in generate(worker, PROMPTS)[0]]
    weights = random_weights(worker, 3)
    worker.fetch_weights((weights, {"empty": np.zeros((0, 2), dtype=np.uint16), "scalar": np.array(1.0)}))
    assert worker.version() == 0
    assert [t.tokens.tolist() for t in generate(worker, PROMPTS)[0]] == before


def test_worker_keeps_no_view_of_the_arrays_it_was_given(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    worker.load()
    shared = random_weights(worker, 3)
    worker.load_weights(shared, 1)
    before = [t.tokens.tolist() for t in generate(worker, PROMPTS)[0]]
    for array in shared.values():
        array[...] = np.nan
    assert [t.tokens.tolist() for t in generate(worker, PROMPTS)[0]] == before


def test_weights_of_another_model_are_refused_by_name(worker):
    weights = random_weights(worker, 1)
    weights["model.extra.weight"] = weights.pop("model.norm.weight")
    with pytest.raises(models.ModelError, match=r"missing: model\.norm\.weight; surplus: model\.extra\.weight"):
        worker.load_weights(weights, 9)
    assert worker.version() == 0


def test_work_before_load_says_what_is_missing(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    with pytest.raises(RuntimeError, match=r"call load\(\)"):
        generate(worker, PROMPTS)


def test_offered_weights_are_taken_between_two_forwards_and_the_answer_says_so(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    worker.load()
    before = generate(worker, PROMPTS[:1])
    named = random_weights(worker, 1)
    looks = []
    take = worker._take_offered

    def offer_at_the_third_look():
        looks.append(None)
        if len(looks) == 3:
            worker.offer_weights(named, 4, 1)
        return take()

    worker._take_offered = offer_at_the_third_look
    (answers,) = generate(worker, PROMPTS[:1])
    assert {answer.weights_version for answer in answers} == {(0, 4)}
    # two forwards of the old weights: what they committed is the same, to the last bit
    for answer, old in zip(answers, before[0], strict=True):
        early = answer.step_map < 2
        assert early.sum() == 2
        assert np.array_equal(answer.tokens[early], old.tokens[early])
        assert np.array_equal(answer.logprobs[early], old.logprobs[early])
    # the load that was queued behind the answer finds its weights there already
    assert worker.load_weights(named, 4, 1).num_bytes == sum(array.nbytes for array in named.values())
    assert worker.version() == 4
    assert generate(worker, PROMPTS[:1])[0][0].weights_version == (4, 4)


def test_weights_offered_late_are_never_overwritten_by_an_older_load(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    worker.load()
    old, new = random_weights(worker, 1), random_weights(worker, 2)
    worker.offer_weights(new, 6, 2)
    generate(worker, PROMPTS[:1])
    worker.load_weights(old, 5, 1)
    assert worker.version() == 6
    # a learner that went back to a checkpoint publishes version 5 again, later
    worker.load_weights(old, 5, 3)
    assert worker.version() == 5
