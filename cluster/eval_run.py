"""The evaluation behind `unmask eval`: tasks x samplers on one model, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.evaluate import EvalResult, check_k, compare, evaluate
from cluster.kept_answers import KeptAnswers
from cluster.terminal import console
from models.config import ModelConfig
from reward.config import TaskConfig
from reward.tasks import build
from reward.worker import GraderWorker
from rollout.config import DecodingConfig, EvalConfig, RolloutConfig
from rollout.records import Prompt, Trajectory
from rollout.worker import RolloutWorker

CHUNK_ANSWERS = 256
"""Answers between two movements of the progress bar; answers do not depend on it."""
Result = tuple[DecodingConfig, EvalResult]


@dataclass(frozen=True)
class EvalRun:
    """What to measure; everything that can be wrong without the model is checked here."""

    model: ModelConfig
    tasks: Sequence[TaskConfig]
    k: Sequence[int]
    num_samples: int
    limit: int | None
    seed: int
    max_batch_tokens: int
    answers_file: Path | None = None
    """Where the answers of an unfinished evaluation are kept; a later call with the same settings goes on from them."""

    def __post_init__(self) -> None:
        check_k(self.k, num_samples=self.num_samples)

    def results(self, decodings: Sequence[DecodingConfig]) -> list[Result]:
        """Every task with every decoding. Rows are read before the model is."""
        tasks = [build(config) for config in self.tasks]
        rows = {task.name: len(task.rows("test")[: self.limit]) for task in tasks}
        worker = RolloutWorker(self.model, RolloutConfig(max_batch_tokens=self.max_batch_tokens))
        worker.load()
        kept = None if self.answers_file is None else KeptAnswers(self.answers_file, self.model)
        found: list[Result] = []
        with closing(GraderWorker(self.tasks)) as grader, _progress() as progress:
            grader.prove()
            for task in tasks:
                for decoding in decodings:
                    bar = progress.add_task(f"{task.name} x {decoding.sampler.name}", total=rows[task.name])
                    config = EvalConfig(**dict(decoding), num_samples=self.num_samples, limit=self.limit)
                    generate = _Generate(worker, partial(progress.advance, bar), kept)
                    found.append((decoding, evaluate(generate, grader.grade, task, config, self.seed, k=self.k)))
        if kept is not None:
            kept.remove()
        return found

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The results with what they were measured under, for JSON."""
        return {
            "model": self.model.path,
            "dtype": self.model.dtype,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "limit": self.limit,
            "test_files": {config.name: config.test_file for config in self.tasks},
            "results": [
                {
                    **result.numbers(),
                    "sampler": decoding.sampler.name,
                    "sampler_options": decoding.sampler.options,
                    **decoding.model_dump(exclude={"sampler"}),
                }
                for decoding, result in results
            ],
            "comparisons": [comparison.numbers() for comparison in compare(named(results), seed=self.seed)],
        }


def named(results: Sequence[Result]) -> list[tuple[str, EvalResult]]:
    """Each result with the name of its sampler."""
    return [(decoding.sampler.name, result) for decoding, result in results]


def _progress() -> Progress:
    """A bar with rows done and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console(stderr=True), transient=True)


class _Generate:
    """A worker's answers in chunks, so that a person sees them come, and each chunk is kept as soon as it is there."""

    def __init__(self, worker: RolloutWorker, advance: Callable[[int], None], kept: KeptAnswers | None = None) -> None:
        self._worker = worker
        self._advance = advance
        self._kept = kept

    def __call__(
        self, prompts: list[Prompt], num_samples: int, seed: int, decoding: DecodingConfig
    ) -> list[list[Trajectory]]:
        size = max(1, CHUNK_ANSWERS // num_samples)
        answers: list[list[Trajectory]] = []
        for start in range(0, len(prompts), size):
            chunk = prompts[start : start + size]
            make = partial(self._worker.generate, chunk, num_samples=num_samples, seed=seed, decoding=decoding)
            answers += make() if self._kept is None else self._kept.answer(chunk, num_samples, seed, decoding, make)
            self._advance(len(chunk))
        return answers


def task_configs(names: Sequence[str], test_files: Sequence[str]) -> list[TaskConfig]:
    """Tasks by name, with test rows from `TASK=FILE` entries (`FILE` alone where there is one task)."""
    files: dict[str, str] = {}
    for text in test_files:
        task, separator, file = text.rpartition("=")
        if not separator and len(names) > 1:
            raise ValueError(f"--test-file {text}: there are {len(names)} tasks; write TASK=FILE")
        if separator and task not in names:
            raise ValueError(f"--test-file {text}: {task!r} is not among the tasks {', '.join(names)}")
        files[task or names[0]] = file
    return [TaskConfig(name=name, test_file=files.get(name)) for name in names]
