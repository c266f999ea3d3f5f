"""The denoising engine: continuous batching of canvases under one sampler.

Sequences join and leave between forwards. A forward holds every active canvas, padded on the right; the vocabulary head
runs only at the slots that the sampler looks at. A finished sequence leaves at once and its place is refilled from the
queue, which is ordered by length so that neighbours in a batch need little padding.

R active sequences, N canvas positions, M slots evaluated, V vocabulary, D width, P prompt tokens, T response slots.

The answer to a request depends on its own fields only: random numbers are keyed by the sequence's seed, and padding and
neighbours do not enter its arithmetic, up to the last bits of matrix products of another shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from models import Denoiser
from rollout.canvas import Canvases, Layout
from rollout.records import Trajectory
from rollout.request import Request, sequence_seed
from samplers import StepSampler


class _Evaluation:
    """The prediction of one forward, asked for slot by slot."""

    def __init__(self, denoiser: Denoiser, hidden_RND: torch.Tensor, block_start_R: torch.Tensor) -> None:
        self._denoiser, self._hidden_RND, self._block_start_R = denoiser, hidden_RND, block_start_R
        self.vocab_size = denoiser.vocab_size

    def __call__(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        hidden_MD = self._denoiser.aligned(self._hidden_RND, row_M, self._block_start_R[row_M] + column_M)
        logits_MV = self._denoiser.head(hidden_MD).float()
        logits_MV[:, self._denoiser.mask_token_id] = -torch.inf
        return logits_MV


class Engine:
    """Denoise prompts into answers.

    `block_length`: slots per semi-autoregressive block, None for full diffusion; in a block-causal family the attention
    block, the family's own if None. `sub_block_length`: slots decoded together in a block. `cache`: `none` is exact.
    `max_batch_tokens`: canvas positions, padding included, that one forward may hold; a longer canvas runs alone.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: StepSampler,
        *,
        block_length: int | None = None,
        sub_block_length: int | None = None,
        cache: str = "none",
        max_batch_tokens: int = 16384,
    ) -> None:
        if cache != "none":
            raise ValueError(f"cache is {cache!r}; this engine knows 'none' (exact)")
        for name, value in (("block_length", block_length), ("sub_block_length", sub_block_length)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or None")
        if max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1")
        family = denoiser.family
        if family.block_causal and block_length is None:
            block_length = denoiser.block_length
        if sub_block_length is not None and block_length is not None and block_length % sub_block_length:
            raise ValueError(f"sub_block_length {sub_block_length} must divide block_length {block_length}")
        self.denoiser, self.sampler = denoiser, sampler
        self.layout = Layout(block_length, family.block_causal, sub_block_length, family.first_slot_alone)
        self.max_batch_tokens = max_batch_tokens
        self.weights_version = 0
        """Version of the weights in the denoiser, as whoever loads them says; recorded with each trajectory."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int = 1,
        max_new_tokens: int,
        steps: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Trajectory]:
        """Answer prompts of token ids: in prompt order, the samples of one prompt together.

        A sequence's seed is derived from `seed`, the prompt's tokens and the number of the sample (counted on over
        repeated prompts), so an answer does not change when other prompts are added or reordered.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
        seen: Counter[str] = Counter()
        requests = []
        for tokens in prompts:
            key = ",".join(map(str, tokens))
            for sample_index in range(num_samples):
                own = sequence_seed(seed, key, seen[key])
                seen[key] += 1
                requests.append(
                    Request(tokens, max_new_tokens, own, temperature, top_p, steps, sample_index=sample_index)
                )
        return self.run(requests)

    def run(self, requests: Sequence[Request]) -> list[Trajectory]:
        """Answer requests, in their order."""
        answers: list[Trajectory | None] = [None] * len(requests)
        for index, trajectory in self.stream(requests):
            answers[index] = trajectory
        assert all(answer is not None for answer in answers)
        return [answer for answer in answers if answer is not None]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Trajectory]]:
        """Answer requests in the order in which they finish, each with its index."""
        for request in requests:
            request.check(max_length=self.denoiser.max_length, vocab_size=self.denoiser.vocab_size)
        queue = sorted(range(len(requests)), key=lambda index: -_length(requests[index]))
        active: list[int] = []
        first_version: dict[int, int] = {}
        canvases: Canvases | None = None
        while queue or active:
            joining = self._admit(queue, active, requests)
            if joining:
                fresh = self._lay_out([requests[index] for index in joining])
                first_version.update(dict.fromkeys(joining, self.weights_version))
                if canvases is None or not active:
                    canvases = fresh
                else:
                    canvases.extend(fresh, pad_id=self.denoiser.eos_token_id)
                active += joining
            assert canvases is not None
            finished_R = self._step(canvases)
            if not bool(finished_R.any()):
                continue
            for row in finished_R.nonzero()[:, 0].tolist():
                index = active[row]
                versions = (first_version.pop(index), self.weights_version)
                yield index, self._record(canvases, row, requests[index], versions)
            staying = (~finished_R).nonzero()[:, 0]
            active = [active[row] for row in staying.tolist()]
            canvases.keep(staying)

    def _admit(self, queue: list[int], active: list[int], requests: Sequence[Request]) -> list[int]:
        """Take from the queue what fits the token budget beside the active sequences."""
        longest = max((_length(requests[index]) for index in [*active, *queue[:1]]), default=1)
        room = max(1, self.max_batch_tokens // longest) - len(active)
        joining = queue[: max(0, room)]
        del queue[: len(joining)]
        return joining

    def _lay_out(self, requests: list[Request]) -> Canvases:
        return Canvases.of(
            requests,
            self.layout,
            mask_id=self.denoiser.mask_token_id,
            pad_id=self.denoiser.eos_token_id,
            device=self._device,
        )

    @property
    def _device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.inference_mode()
    def _step(self, canvases: Canvases) -> torch.Tensor:
        """Run one forward for every active sequence and commit; return which are finished, bool (R,)."""
        width = int(canvases.visible_R.max())
        valid_RN = None
        if int(canvases.visible_R.min()) < width:
            valid_RN = torch.arange(width, device=self._device) < canvases.visible_R[:, None]
        hidden_RND = self.denoiser.hidden(
            canvases.token_RN[:, :width],
            valid_BN=valid_RN,
            block_length=self.layout.block_length if self.layout.block_causal else None,
        )
        stop_ids = self.denoiser.stop_token_ids
        state = canvases.block_state(self.layout, stop_ids=stop_ids)
        canvases.commit(self.sampler.step(state, _Evaluation(self.denoiser, hidden_RND, canvases.block_start_R)))
        finished_R = canvases.finished(torch.tensor(stop_ids, device=self._device))
        canvases.advance(self.layout)
        return finished_R

    def _record(self, canvases: Canvases, row: int, request: Request, versions: tuple[int, int]) -> Trajectory:
        start, end = int(canvases.prompt_length_R[row]), int(canvases.length_R[row])
        token_T, masked_T = canvases.token_RN[row, start:end].cpu(), canvases.masked_RN[row, start:end].cpu()
        num_steps = int(canvases.step_R[row])
        committed_T = ~masked_T
        stop_T = committed_T & torch.isin(token_T, torch.tensor(self.denoiser.stop_token_ids))
        ended = bool(stop_T.any())
        token_T = torch.where(masked_T, self.denoiser.eos_token_id, token_T)
        step_map_T = torch.where(masked_T, num_steps, canvases.step_map_RN[row, start:end].cpu())
        return Trajectory(
            tokens=token_T.numpy(),
            step_map=step_map_T.to(torch.int32).numpy(),
            logprobs=torch.where(masked_T, 0.0, canvases.logprob_RN[row, start:end].cpu()).numpy(),
            entropies=torch.where(masked_T, 0.0, canvases.entropy_RN[row, start:end].cpu()).numpy(),
            num_steps=num_steps,
            num_forwards=num_steps,
            finish_reason="eos" if ended else "length",
            answer_length=int(stop_T.to(torch.int64).argmax()) if ended else len(token_T),
            seed=request.seed,
            sampler=self.sampler.name,
            exact_likelihood=self.sampler.exact_likelihood or request.temperature == 0,
            temperature=request.temperature,
            top_p=request.top_p,
            block_length=self.layout.block_length or len(token_T),
            weights_version=versions,
            prompt_tokens=np.asarray(request.prompt_tokens, dtype=np.int64),
            prompt_id=request.prompt_id,
            sample_index=request.sample_index,
        )


def _length(request: Request) -> int:
    return len(request.prompt_tokens) + request.max_new_tokens
