"""Answers by chains over several runs of the same request (`samplers.sequence_chain`).

R requests, K1 runs of each, T response slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rollout.batch import Batch
from rollout.records import Trajectory
from rollout.request import Request, sequence_seed
from samplers.sequence_chain import SequenceChain

if TYPE_CHECKING:
    from rollout.engine import Engine


@dataclass
class Answer:
    """A request and the blocks that its chains have settled."""

    request: Request
    num_runs: int
    parts: list[Trajectory] = field(default_factory=list)
    num_forwards: int = 0
    log_weights: list[np.ndarray] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    effective_size: list[float] = field(default_factory=list)

    @property
    def num_slots(self) -> int:
        """Slots settled so far."""
        return sum(len(part.tokens) for part in self.parts)

    @property
    def is_done(self) -> bool:
        """Whether an end token or the last slot is settled."""
        return self.num_slots == self.request.max_new_tokens

    def runs(self) -> list[Request]:
        """The next runs: what is settled joins the prompt, and each run has a seed of its own."""
        request, settled = self.request, [token for part in self.parts for token in part.tokens.tolist()]
        return [
            replace(
                request,
                prompt_tokens=[*request.prompt_tokens, *settled],
                max_new_tokens=request.max_new_tokens - len(settled),
                seed=sequence_seed(request.seed, "run", len(self.parts), number),
            )
            for number in range(self.num_runs)
        ]

    def merged(self, *, block_length: int | None) -> Trajectory:
        """The settled blocks as one trajectory; `block_length` is the engine's."""
        before = np.cumsum([0, *(part.num_steps for part in self.parts)])
        last = self.parts[-1]
        chain_notes = {
            "chain_log_weight": np.stack(self.log_weights),
            "chain_index": np.array(self.index),
            "chain_accepted": np.array(self.accepted),
            "chain_effective_size": np.array(self.effective_size),
        }
        return replace(
            last,
            tokens=np.concatenate([part.tokens for part in self.parts]),
            step_map=np.concatenate([part.step_map + n for part, n in zip(self.parts, before, strict=False)]),
            logprobs=np.concatenate([part.logprobs for part in self.parts]),
            entropies=np.concatenate([part.entropies for part in self.parts]),
            computed=np.concatenate([part.computed for part in self.parts]),
            num_steps=int(before[-1]),
            num_forwards=self.num_forwards,
            answer_length=self.num_slots - len(last.tokens) + last.answer_length,
            block_length=block_length or self.num_slots,
            seed=self.request.seed,
            prompt_tokens=np.asarray(self.request.prompt_tokens, dtype=np.int64),
            weights_version=(self.parts[0].weights_version[0], last.weights_version[1]),
            notes={name: np.concatenate([part.notes[name] for part in self.parts]) for name in last.notes}
            | chain_notes,
        )


def stream(engine: Engine, sampler: SequenceChain, requests: Sequence[Request]) -> Iterator[tuple[int, Trajectory]]:
    """Answer requests, each with its index: rounds of runs and chains until every answer is settled.

    A greedy request has one run: all would be the same.
    """
    answers = [Answer(request, 1 + sampler.candidates * (request.temperature > 0)) for request in requests]
    waiting = dict(enumerate(answers))
    while waiting:
        runs = [answer.runs() for answer in waiting.values()]
        drawn = iter(_run(engine, [run for own in runs for run in own], one_block=sampler.level == "block"))
        for answer in waiting.values():
            settle(answer, [next(drawn) for _ in range(answer.num_runs)], sampler)
        for index in [index for index, answer in waiting.items() if answer.is_done]:
            yield index, waiting.pop(index).merged(block_length=engine.layout.block_length)


def _run(engine: Engine, requests: Sequence[Request], *, one_block: bool) -> list[Trajectory]:
    batch = Batch(engine, requests, one_block=one_block)
    found: dict[int, Trajectory] = {}
    while batch.admit():
        found |= batch.step()
    return [found[index] for index in range(len(requests))]


def settle(answer: Answer, runs: Sequence[Trajectory], sampler: SequenceChain) -> None:
    """Keep one of the runs, and what all of them cost."""
    log_weight_1K = torch.tensor([[float(run.notes["log_mass"].sum(dtype=np.float64)) for run in runs]]).double()
    picked = sampler.choose(log_weight_1K, torch.tensor([answer.request.seed]), number=len(answer.parts))
    chosen = runs[int(picked.index_R)]
    answer.parts.append(chosen if chosen.finish_reason == "eos" else _committed(chosen))
    answer.num_forwards += sum(run.num_forwards for run in runs)
    answer.log_weights.append(log_weight_1K[0].numpy())
    answer.index.append(int(picked.index_R))
    answer.accepted.append(int(picked.accepted_R))
    answer.effective_size.append(float(picked.effective_size_R))


def _committed(run: Trajectory) -> Trajectory:
    """The slots that a run has filled, which are its first."""
    number = int(run.committed.sum())
    assert bool(run.committed[:number].all())
    cut = {name: getattr(run, name)[:number] for name in ("tokens", "step_map", "logprobs", "entropies")}
    return replace(run, **cut, answer_length=number)
