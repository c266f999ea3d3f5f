"""Where the answers of an evaluation come from: a model in this process, or a pool of workers; kept as they come.

Prompts go in chunks. A chunk is kept on disk as soon as it is complete, so that an evaluation that broke off goes on
from there, with as many workers as one likes: an answer follows from its prompt, its seed and the number of the sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.actors import wait
from cluster.bulk import worker_pool
from cluster.calls import CallFailure
from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.kept_answers import KeptAnswers
from cluster.pool import POLL_S
from cluster.ray_start import ray_session
from cluster.rollout_pool import Ask, RolloutPool
from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt, Trajectory
from rollout.worker import RolloutWorker

Answers = list[list[Trajectory]]
Chunks = Mapping[int, Sequence[Prompt]]
"""Prompts by the number of their chunk."""
MAX_NAMED = 5
"""Unanswered prompts that an error names."""


@dataclass(frozen=True)
class Question:
    """What every prompt is asked with."""

    num_samples: int
    seed: int
    decoding: DecodingConfig


Source = Callable[[Chunks, Question], Iterator[tuple[int, Answers]]]
"""Answers of each chunk, by its number, in the order in which they are complete."""


@contextmanager
def source(model: ModelConfig, rollout: RolloutConfig, cluster: ClusterConfig | None) -> Iterator[Source]:
    """A loaded model; with a `cluster` a pool of `rollout.num_workers` there, without one it is in this process."""
    if cluster is None:
        worker = RolloutWorker(model, rollout)
        worker.load()
        yield lambda chunks, question: _from_worker(worker, chunks, question)
        return
    with ray_session(cluster), worker_pool(model, rollout, cluster) as pool:
        yield lambda chunks, question: _from_pool(pool, chunks, question)


class KeptSource:
    """Answers of a source, in chunks of at most `chunk_answers`, the kept ones first."""

    def __init__(
        self, source: Source, *, chunk_answers: int, advance: Callable[[int], None], kept: KeptAnswers | None
    ) -> None:
        self._source, self._chunk_answers, self._advance, self._kept = source, chunk_answers, advance, kept

    def __call__(self, prompts: list[Prompt], num_samples: int, seed: int, decoding: DecodingConfig) -> Answers:
        """Answers of each prompt, in order."""
        size = max(1, self._chunk_answers // num_samples)
        chunks = {number: prompts[start : start + size] for number, start in enumerate(range(0, len(prompts), size))}
        found = self._find(chunks, num_samples, seed, decoding)
        missing = {number: chunk for number, chunk in chunks.items() if number not in found}
        for number, answers in self._source(missing, Question(num_samples, seed, decoding)) if missing else ():
            found[number] = answers
            if self._kept is not None:
                self._kept.keep(self._kept.key(chunks[number], num_samples, seed, decoding), answers)
            self._advance(len(answers))
        return [row for number in chunks for row in found[number]]

    def _find(self, chunks: Chunks, num_samples: int, seed: int, decoding: DecodingConfig) -> dict[int, Answers]:
        found: dict[int, Answers] = {}
        for number, chunk in chunks.items() if self._kept is not None else ():
            assert self._kept is not None
            answers = self._kept.find(self._kept.key(chunk, num_samples, seed, decoding))
            if answers is not None:
                found[number] = answers
                self._advance(len(answers))
        return found


def _from_worker(worker: RolloutWorker, chunks: Chunks, question: Question) -> Iterator[tuple[int, Answers]]:
    for number, prompts in chunks.items():
        samples, seed = question.num_samples, question.seed
        yield number, worker.generate(prompts, num_samples=samples, seed=seed, decoding=question.decoding)


def _from_pool(pool: RolloutPool, chunks: Chunks, question: Question) -> Iterator[tuple[int, Answers]]:
    """All chunks at once. Raises `RunError` if a prompt has no answer, when every other chunk is complete."""
    asks = [
        Ask(prompt, question.num_samples, question.seed, question.decoding, key=number)
        for number, prompts in chunks.items()
        for prompt in prompts
    ]
    pool.ask(asks)
    answers: defaultdict[int, dict[str, list[Trajectory]]] = defaultdict(dict)
    failures: dict[str, CallFailure] = {}
    num_open = len(asks)
    while num_open:
        wait(pool.futures(), timeout_s=POLL_S)
        for ask, outcome in pool.collect():
            num_open -= 1
            if isinstance(outcome, CallFailure):
                failures[ask.prompt.id] = outcome
                continue
            answers[ask.key][ask.prompt.id] = outcome
            if len(answers[ask.key]) == len(chunks[ask.key]):
                made = answers.pop(ask.key)
                yield ask.key, [made[prompt.id] for prompt in chunks[ask.key]]
    if failures:
        named = "\n".join(f"  {name}: {failure.headline}" for name, failure in list(failures.items())[:MAX_NAMED])
        raise RunError(
            f"{len(failures)} prompts have no answer:\n{named}\nWith --json the answers to the others are kept, and "
            "the same command goes on from them."
        )
