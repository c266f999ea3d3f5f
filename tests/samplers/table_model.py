"""A model that is a table, the state of one block, and the plain loop that fills it."""

from collections.abc import Callable

import torch

from samplers.records import BlockState, Commit, ResponseView, StepSampler


class TableModel:
    """Answers every canvas with the same probabilities: (columns, vocabulary), or (rows, columns, vocabulary)."""

    def __init__(self, probability: torch.Tensor, attention_RL: torch.Tensor | None = None) -> None:
        self.logits_RLV = probability.log() if probability.ndim == 3 else probability.log()[None]
        self.vocab_size = probability.shape[-1]
        self.attention_RL = attention_RL
        self.asked, self.head_rows = [], 0

    def hidden(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(row_M))
        return torch.stack([row_M, column_M], dim=1)

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        self.head_rows += len(hidden_MD)
        row_M, column_M = hidden_MD.unbind(dim=1)
        return self.logits_RLV[row_M % len(self.logits_RLV), column_M]

    def attention(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        return self.attention_RL[row_M, column_M]

    def with_tokens(self, row_K, column_K, token_K) -> "TableModel":
        """The canvas does not matter to a table: the rows' own probabilities."""
        return TableModel(self.logits_RLV[row_K % len(self.logits_RLV)].exp())


def state_of(masked_RL: torch.Tensor, *, temperature: float = 0.0, sampler: StepSampler | None = None, **changes):
    """State of blocks at their first step; `changes` replace fields."""
    rows, columns = masked_RL.shape
    zero_R = torch.zeros(rows, dtype=torch.int64)
    values = {
        "candidate_RL": masked_RL,
        "masked_R": masked_RL.sum(1),
        "slot_RL": torch.arange(columns).expand(rows, -1),
        "seed_R": torch.arange(rows) + 11,
        "step_R": zero_R,
        "block_step_R": zero_R,
        "block_masked_R": masked_RL.sum(1),
        "block_steps_R": zero_R,
        "temperature_R": torch.full((rows,), temperature),
        "top_p_R": torch.ones(rows),
        "top_k_R": zero_R,
        "stop_ids": (2,),
        "whole_response": False,
        "memory_RL": {name: torch.zeros(rows, columns) for name in (sampler.memory if sampler else ())},
    } | changes
    # The block is the whole answer, as long as its first step or its last masked column says.
    last_R = torch.where(masked_RL, torch.arange(columns) + 1, 0).amax(dim=1)
    length_R = torch.maximum(values["block_masked_R"], last_R)
    values.setdefault("response", ResponseView(masked_RL, masked_RL, length_R))
    flags = {
        "any_temperature": bool((values["temperature_R"] > 0).any()),
        "any_greedy": bool((values["temperature_R"] == 0).any()),
        "any_top_p": bool((values["top_p_R"] < 1).any()),
        "max_top_k": int(values["top_k_R"].max()),
        "any_budget": bool((values["block_steps_R"] > 0).any()),
    }
    return BlockState(**flags | values)


def one_step(sampler: StepSampler, probability: torch.Tensor, **changes) -> Commit:
    """First step on one row of slots, all masked."""
    masked_RL = torch.ones(1, probability.shape[-2], dtype=torch.bool)
    return sampler.step(state_of(masked_RL, sampler=sampler, **changes), TableModel(probability))


def columns(commit: Commit) -> list[int]:
    return sorted(commit.column_K.tolist())


def tops(*top: float) -> torch.Tensor:
    """A slot for each number: a law of two tokens with this highest probability."""
    top_L = torch.tensor(top)
    return torch.stack([top_L, 1 - top_L], dim=1)


def fill(
    sampler: StepSampler,
    predict: Callable[[torch.Tensor, torch.Tensor], object],
    *,
    rows: int,
    length: int,
    temperature: float,
    **changes,
) -> tuple[torch.Tensor, list[Commit]]:
    """Fill one block; return tokens (R, L) and the commits. `predict(token_RL, masked_RL)` answers with an Evaluate."""
    token_RL = torch.full((rows, length), -1)
    masked_RL = torch.ones(rows, length, dtype=torch.bool)
    memory_RL = {name: torch.zeros(rows, length) for name in sampler.memory}
    commits = []
    for step in range(length):
        left_R = masked_RL.any(dim=1).nonzero()[:, 0]
        if not len(left_R):
            break
        step_R = torch.full((len(left_R),), step)
        state = state_of(
            masked_RL[left_R],
            temperature=temperature,
            seed_R=left_R + 11,
            step_R=step_R,
            block_step_R=step_R,
            memory_RL={name: value[left_R] for name, value in memory_RL.items()},
            **changes,
        )
        commit = sampler.step(state, predict(token_RL[left_R], masked_RL[left_R]))
        row_K = left_R[commit.row_K]
        assert bool(masked_RL[row_K, commit.column_K].all())
        assert bool(torch.isin(torch.arange(len(left_R)), commit.row_K).all())
        token_RL[row_K, commit.column_K] = commit.token_K
        masked_RL[row_K, commit.column_K] = False
        for name, value in (commit.memory_RL or {}).items():
            memory_RL[name][left_R] = value
        commits.append(commit)
    assert not bool(masked_RL.any())
    return token_RL, commits
