"""The evaluation behind `unmask eval`: tasks x samplers on one model, in this process or on a pool of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.bulk_progress import PlainProgress
from cluster.config import ClusterConfig
from cluster.eval_answers import KeptSource, source
from cluster.eval_rows import SETTINGS, Arm, Rows, label_of, named
from cluster.evaluate import EvalResult, check_k, compare, evaluate
from cluster.kept_answers import KeptAnswers
from cluster.terminal import console
from models.config import ModelConfig
from reward.config import TaskConfig
from reward.tasks import build
from reward.worker import GraderWorker
from rollout.config import DecodingConfig, EvalConfig, RolloutConfig

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
    workers: RolloutConfig = field(default_factory=RolloutConfig)
    """Number and size of the workers of a pool."""
    cluster: ClusterConfig | None = None
    """Where the pool is; None: one worker in this process."""

    def __post_init__(self) -> None:
        check_k(self.k, num_samples=self.num_samples)

    def results(self, decodings: Sequence[DecodingConfig]) -> list[Result]:
        """Every task with every decoding. Rows are read before the model is."""
        tasks = [build(config) for config in self.tasks]
        rows = {task.name: len(task.rows("test")[: self.limit]) for task in tasks}
        workers = self.workers.model_copy(update={"max_batch_tokens": self.max_batch_tokens})
        found: list[Result] = []
        with (
            closing(GraderWorker(self.tasks)) as grader,
            source(self.model, workers, self.cluster) as answers,
            _progress(sum(rows.values()) * len(decodings)) as (advance, say),
        ):
            grader.prove()
            kept = None if self.answers_file is None else KeptAnswers(self.answers_file, self.model)
            generate = KeptSource(answers, chunk_answers=CHUNK_ANSWERS, advance=advance, kept=kept)
            for task in tasks:
                for decoding in decodings:
                    say(f"{task.name} x {label(decoding)}")
                    config = EvalConfig(**dict(decoding), num_samples=self.num_samples, limit=self.limit)
                    found.append((decoding, evaluate(generate, grader.grade, task, config, self.seed, k=self.k)))
            if kept is not None:
                kept.close()
        return found

    def remove_kept(self) -> None:
        """Delete the answers kept: the numbers are where they should be."""
        if self.answers_file is not None:
            self.answers_file.unlink(missing_ok=True)

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The results with what they were measured under, and the counts of each row, for JSON."""
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
                    **decoding.model_dump(mode="json", exclude={"sampler"}),
                    "rows": Rows.of(result.samples).numbers(),
                }
                for decoding, result in results
            ],
            "comparisons": [comparison.numbers() for comparison in compare(labelled(results), seed=self.seed)],
        }

    def arms(self, results: Sequence[Result]) -> list[Arm]:
        """The results as `unmask compare` reads them."""
        shared = {"model": self.model.path, "dtype": self.model.dtype}
        return named(
            [
                Arm(
                    task=result.task,
                    sampler=decoding.sampler.name,
                    options=decoding.sampler.options,
                    settings=shared
                    | {name: value for name, value in decoding.model_dump(mode="json").items() if name in SETTINGS},
                    seeds={self.seed: Rows.of(result.samples)},
                )
                for decoding, result in results
            ]
        )


def label(decoding: DecodingConfig) -> str:
    """The sampler and its options."""
    return label_of(decoding.sampler.name, decoding.sampler.options)


def labelled(results: Sequence[Result]) -> list[tuple[str, EvalResult]]:
    """Each result with the name and the options of its sampler."""
    return [(label(decoding), result) for decoding, result in results]


@contextmanager
def _progress(num_rows: int) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """What hears of finished rows, and of what is worked on: a bar with time left, or plain lines where there is no
    terminal."""
    shared = console(stderr=True)
    if not shared.is_terminal:
        plain = PlainProgress(shared, num_rows, what="rows")
        plain(0)
        yield plain, lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shared, transient=True) as progress:
        bar = progress.add_task("", total=num_rows)
        yield (lambda count: progress.advance(bar, count), lambda text: progress.update(bar, description=text))


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
