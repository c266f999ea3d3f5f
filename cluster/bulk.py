"""Bulk generation: the prompts of a file answered by a pool of workers, each answer kept as soon as it is there.

Everything that can be wrong is refused before an actor starts. A worker that dies is replaced and its prompts go to
another one; a prompt that still has no answer at the end stops the output file from appearing, and a resumed command
tries it again. Answers are the same with any number of workers, because each follows from its prompt's id, its seed
and the number of the sample.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.actors import Launcher, wait
from cluster.answer_file import AnswerFile, journal_of
from cluster.bundles import Need
from cluster.calls import CallFailure
from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.generate import PromptRow, as_json, check_rows
from cluster.line_file import read_lines
from cluster.placement import Placement, reserve
from cluster.pool import POLL_S
from cluster.preflight import check_model
from cluster.ray_start import ray_session
from cluster.rollout_pool import Answers, Ask, RolloutPool
from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.request import sequence_seed
from samplers.config import SamplerConfig

logger = logging.getLogger(__name__)

MAX_NAMED = 5
"""Unanswered prompts that an error names."""
OnAnswered = Callable[[int], None]


@dataclass(frozen=True)
class BulkRun:
    """What to answer with, and where."""

    model: ModelConfig
    rollout: RolloutConfig
    """Decoding, samples per prompt and the workers."""
    seed: int
    cluster: ClusterConfig

    @property
    def settings(self) -> dict[str, Any]:
        """What all answers follow from beside their prompts; the number of workers is not among it."""
        decoding = DecodingConfig(**{name: getattr(self.rollout, name) for name in DecodingConfig.model_fields})
        return {
            "model": self.model.path,
            "weights": _fingerprint(self.model.path),
            "dtype": self.model.dtype,
            "seed": self.seed,
            "num_samples": self.rollout.num_samples,
            **decoding.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class BulkSummary:
    """What a bulk generation has come to."""

    num_prompts: int
    num_kept: int
    """Prompts answered by an earlier attempt."""
    num_answers: int
    """Answers made by this one."""
    num_forwards: int
    """Forwards of the answers made by this one."""
    num_restarts: int
    seconds: float
    """From the first prompt sent to the last answer kept; starting the workers is not in it."""


def generate_bulk(
    run: BulkRun, rows: Sequence[PromptRow], out: Path, *, resume: bool = False, answered: OnAnswered = lambda _: None
) -> BulkSummary:
    """Answer all rows into `out`; `answered` hears of prompts as they are done, those of an earlier attempt too."""
    check_model(run.model.path)
    check_rows(run.model.path, rows, run.rollout)
    keys = [row_key(row) for row in rows]
    if resume and out.exists() and not journal_of(out).exists():
        _check_whole(run, rows, out)
        answered(len(rows))
        return BulkSummary(len(rows), len(rows), 0, 0, 0, 0.0)
    with AnswerFile(out, run.settings, resume=resume) as kept:
        open_rows = [(key, row) for key, row in zip(keys, rows, strict=True) if key not in kept]
        summary = BulkSummary(len(rows), len(rows) - len(open_rows), 0, 0, 0, 0.0)
        answered(summary.num_kept)
        if open_rows:
            with ray_session(run.cluster), worker_pool(run.model, run.rollout, run.cluster) as pool:
                summary = _answer(run, pool, open_rows, kept, summary, answered)
        kept.finish(keys)
    return summary


def row_key(row: PromptRow) -> str:
    """Hash of what the answers to a row follow from, beside the settings of the command."""
    prompt = row.prompt
    turns = None if prompt.messages is None else [dict(turn) for turn in prompt.messages]
    question = [prompt.id, prompt.text, turns, row.sampler, row.seed]
    return hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).hexdigest()


def _answer(
    run: BulkRun,
    pool: RolloutPool,
    rows: Sequence[tuple[str, PromptRow]],
    kept: AnswerFile,
    summary: BulkSummary,
    answered: OnAnswered,
) -> BulkSummary:
    """Send all rows to the pool and keep what comes back; raises `RunError` if a prompt has no answer at the end."""
    started = time.monotonic()
    failures: dict[str, CallFailure] = {}
    for asks in _asks(run, rows):
        pool.ask(asks)
    num_open, num_answers, num_forwards = len(rows), 0, 0
    while num_open:
        wait(pool.futures(), timeout_s=POLL_S)
        for ask, outcome in pool.collect():
            num_open -= 1
            if isinstance(outcome, CallFailure):
                failures[ask.prompt.id] = outcome
                continue
            kept.add(rows[ask.key][0], [as_json(trajectory) for trajectory in outcome])
            num_answers += len(outcome)
            num_forwards += _forwards(outcome)
            answered(1)
    if failures:
        raise RunError(_unanswered(failures, kept))
    return replace(
        summary,
        num_answers=num_answers,
        num_forwards=num_forwards,
        num_restarts=pool.num_restarts,
        seconds=time.monotonic() - started,
    )


def _asks(run: BulkRun, rows: Sequence[tuple[str, PromptRow]]) -> Iterator[list[Ask]]:
    """What to ask the pool, prompts of one sampler together; `key` is the place among the rows."""
    own = run.rollout.sampler
    by_sampler: defaultdict[str, list[Ask]] = defaultdict(list)
    for place, (_, row) in enumerate(rows):
        name = row.sampler or own.name
        sampler = own if name == own.name else SamplerConfig(name=name)
        decoding = run.rollout.model_copy(update={"sampler": sampler})
        seed = run.seed if row.seed is None else row.seed
        by_sampler[name].append(Ask(row.prompt, run.rollout.num_samples, seed, decoding, key=place))
    yield from by_sampler.values()


@contextmanager
def worker_pool(model: ModelConfig, rollout: RolloutConfig, cluster: ClusterConfig) -> Iterator[RolloutPool]:
    """Workers that have loaded the model, on resources reserved for them."""
    need = Need(
        "rollout",
        rollout.num_workers,
        rollout.cpus_per_worker,
        rollout.gpus_per_worker,
        "SPREAD",
        "--num-workers, --cpus-per-worker, --gpus-per-worker",
    )
    launcher = Launcher(mode=cluster.mode)
    with _placement(cluster, need) as placement:
        pool = RolloutPool(
            model, rollout, launcher=launcher, placement=placement, start_timeout_s=cluster.start_timeout_s
        )
        with closing(pool):
            pool.start()
            yield pool


@contextmanager
def _placement(cluster: ClusterConfig, need: Need) -> Iterator[Placement]:
    if cluster.mode == "local":
        yield Placement()
        return
    with reserve("generate", [need], timeout_s=cluster.placement_timeout_s) as placement:
        yield placement


def _check_whole(run: BulkRun, rows: Sequence[PromptRow], out: Path) -> None:
    """Refuse a finished file that holds other answers than those asked for; the records say how each was made."""
    wanted = [
        (
            row.prompt.id,
            sample_index,
            sequence_seed(run.seed if row.seed is None else row.seed, row.prompt.id, sample_index),
            row.sampler or run.rollout.sampler.name,
            run.rollout.temperature,
        )
        for row in rows
        for sample_index in range(run.rollout.num_samples)
    ]
    names = ("id", "sample_index", "seed", "sampler", "temperature")
    if [tuple((line or {}).get(name) for name in names) for line in read_lines(out)] != wanted:
        raise ValueError(f"{out} is finished, with answers of other prompts or settings; give another --out")


def _forwards(answers: Answers) -> int:
    return sum(int(trajectory.num_forwards) for trajectory in answers)


def _unanswered(failures: Mapping[str, CallFailure], kept: AnswerFile) -> str:
    named = [f"  {prompt_id}: {failure.headline}" for prompt_id, failure in list(failures.items())[:MAX_NAMED]]
    more = len(failures) - len(named)
    return "\n".join(
        [
            f"{len(failures)} prompts have no answer, so {kept.path} is not written:",
            *named,
            *([f"  and {more} more"] if more else []),
            f"The other answers are kept in {kept.journal}; the same command with --resume tries these again.",
        ]
    )


def _fingerprint(model: str) -> list[list[Any]]:
    """Names, sizes and times of the weight files: a folder that was written anew holds another model."""
    from models.source import adapter_base, resolve

    folder = Path(model) if adapter_base(model) is not None else resolve(model)
    files = sorted(folder.glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
