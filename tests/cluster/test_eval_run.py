"""An evaluation that was interrupted goes on from the answers it has, and from no others."""

import dataclasses

import numpy as np
import pytest

from cluster import eval_run
from cluster.eval_answers import KeptSource
from cluster.eval_run import EvalRun, labelled
from cluster.kept_answers import KeptAnswers
from models.config import ModelConfig
from reward.config import TaskConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt, Trajectory
from rollout.worker import RolloutWorker
from samplers.config import SamplerConfig

PROMPTS = [Prompt(id=f"p{n}", task="t", text=f"{n}+{n}=") for n in range(3)]
DECODING = DecodingConfig(max_new_tokens=5, block_length=3, sampler=SamplerConfig(name="imh"))


@pytest.fixture
def worker(small_model):
    worker = RolloutWorker(ModelConfig(path=str(small_model)), RolloutConfig())
    worker.load()
    return worker


def unused(chunks, question):
    raise AssertionError("these answers are kept")


def ask(path, model, make, prompts=PROMPTS, num_samples=2, seed=1, decoding=DECODING):
    """Answers of `make`, or those kept in the file, all prompts in one chunk."""
    kept = KeptAnswers(path, ModelConfig(path=str(model)))
    return KeptSource(make, chunk_answers=256, advance=lambda _: None, kept=kept)(prompts, num_samples, seed, decoding)


def gives(answers):
    return lambda chunks, question: iter([(0, answers)])


def same(one: Trajectory, other: Trajectory) -> None:
    for field in dataclasses.fields(Trajectory):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "notes":
            assert sorted(a) == sorted(b)
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


def test_kept_answers_are_the_very_same_records(worker, small_model, tmp_path):
    made = worker.generate(PROMPTS, num_samples=2, seed=1, decoding=DECODING)
    ask(tmp_path / "a.jsonl", small_model, gives(made))
    read = ask(tmp_path / "a.jsonl", small_model, unused)
    assert [len(row) for row in read] == [2, 2, 2]
    for drawn, kept in zip(made, read, strict=True):
        for one, other in zip(drawn, kept, strict=True):
            same(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": PROMPTS[:2]},
        {"prompts": [dataclasses.replace(PROMPTS[0], text="1+1="), *PROMPTS[1:]]},
        {"num_samples": 1},
        {"seed": 2},
        {"decoding": DECODING.model_copy(update={"temperature": 0.5})},
        {"decoding": DECODING.model_copy(update={"sampler": SamplerConfig(name="imh", options={"alpha": 2.0})})},
        {"model": "another"},
    ],
    ids=["prompts", "text", "samples", "seed", "temperature", "options", "model"],
)
def test_answers_to_another_question_are_not_used(worker, small_model, tmp_path, change):
    made = worker.generate(PROMPTS, num_samples=2, seed=1, decoding=DECODING)
    question = {"path": tmp_path / "a.jsonl", "model": small_model}
    ask(make=gives(made), **question)
    assert len(ask(make=unused, **question)) == 3
    with pytest.raises(AssertionError, match="these answers are kept"):
        ask(make=unused, **question | change)


def test_a_torn_line_is_made_again(small_model, tmp_path):
    path = tmp_path / "a.jsonl"
    ask(path, small_model, gives([[], [], []]), num_samples=1)
    path.write_bytes(path.read_bytes()[:-20])
    made = []
    again = lambda chunks, question: made.append(sorted(chunks)) or iter([(0, [[], [], []])])  # noqa: E731
    ask(path, small_model, again, num_samples=1)
    assert made == [[0]]
    assert ask(path, small_model, unused, num_samples=1) == [[], [], []]


def test_an_interrupted_evaluation_goes_on_and_comes_to_the_same_numbers(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(eval_run, "CHUNK_ANSWERS", 4)
    path = tmp_path / "eval.answers.jsonl"
    decodings = [DECODING, DECODING.model_copy(update={"sampler": SamplerConfig(name="random")})]

    def run(answers_file):
        return EvalRun(
            model=ModelConfig(path=str(small_model)),
            tasks=[TaskConfig(name="arithmetic")],
            k=[1, 2],
            num_samples=2,
            limit=6,
            seed=3,
            max_batch_tokens=4096,
            answers_file=answers_file,
        )

    whole = run(None)
    expected = whole.record(whole.results(decodings))
    calls, generate = [], RolloutWorker.generate

    def breaks_once(self, prompts, **options):
        calls.append([prompt.id for prompt in prompts])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return generate(self, prompts, **options)

    monkeypatch.setattr(RolloutWorker, "generate", breaks_once)
    with pytest.raises(KeyboardInterrupt):
        run(path).results(decodings)
    again = run(path)
    results = again.results(decodings)
    assert again.record(results) == expected
    assert len(calls) == 5 + 2  # six chunks: four are kept, the fifth and the sixth are made
    again.remove_kept()
    assert not path.exists()
    assert [name for name, _ in labelled(results)] == ["imh", "random"]
    assert expected["comparisons"][0]["sampler"] == "random"
    assert 0 < expected["results"][0]["chain"]["acceptance"] <= 1
    assert expected["results"][0]["forwards_per_answer"] > 5
