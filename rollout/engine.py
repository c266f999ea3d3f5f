"""The denoising engine: continuous batching of canvases under one sampler.

Every sequence advances alone: it has its own block and step, joins and leaves between forwards, and its place is
refilled from the queue, longest first, the samples of a prompt together. A forward holds the tokens that the cache
policy says must be computed, packed without padding; the last layer and the vocabulary head run only at the slots that
the sampler looks at. Nothing after an end token is ever computed.

A active sequences, N canvas positions, P prompt tokens, T response slots.

With an exact cache the answer to a request depends on its own fields only: random numbers are keyed by the sequence's
seed, and neighbours do not enter its arithmetic, up to the last bits of matrix products of another shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from models import Denoiser
from rollout import chains
from rollout.batch import Batch
from rollout.cache_policy import CachePolicy
from rollout.layout import Layout
from rollout.records import Trajectory
from rollout.request import Request, sequence_seed
from samplers import StepSampler
from samplers.sequence_chain import SequenceChain


class Engine:
    """Denoise prompts into answers.

    `block_length`: slots per semi-autoregressive block, None for full diffusion; in a block-causal family the attention
    block, the family's own if None. `sub_block_length`: slots decoded together in a block. `cache`: a kind, or a policy
    with its refresh rule (`rollout.cache_policy`); `none` and `block` are exact. `max_batch_tokens`: canvas positions
    of all active sequences; a longer canvas runs alone. `max_batch_rows`: active sequences. `share_prompts`: compute
    what the samples of a prompt have in common once.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: StepSampler,
        *,
        block_length: int | None = None,
        sub_block_length: int | None = None,
        cache: str | CachePolicy = "none",
        max_batch_tokens: int = 16384,
        max_batch_rows: int = 1024,
        share_prompts: bool = True,
    ) -> None:
        for name, value in (("block_length", block_length), ("sub_block_length", sub_block_length)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or None")
        for name, value in (("max_batch_tokens", max_batch_tokens), ("max_batch_rows", max_batch_rows)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        policy = CachePolicy(cache) if isinstance(cache, str) else cache  # type: ignore[arg-type]
        family = denoiser.family
        policy.check(block_causal=family.block_causal)
        if family.block_causal and block_length is None:
            block_length = denoiser.block_length
        if sub_block_length is not None and block_length is not None and block_length % sub_block_length:
            raise ValueError(f"sub_block_length {sub_block_length} must divide block_length {block_length}")
        denoiser.stack.fuse()
        self.denoiser, self.sampler, self.policy = denoiser, sampler, policy
        self.layout = Layout(block_length, family.block_causal, sub_block_length, family.first_slot_alone)
        self.max_batch_tokens, self.max_batch_rows = max_batch_tokens, max_batch_rows
        self.share_prompts = share_prompts
        self.weights_version = 0
        """Version of the weights in the denoiser, as whoever loads them says; recorded with each trajectory."""
        self.new_weights: Callable[[], int | None] = lambda: None
        """Asked before each forward: may change the denoiser's weights and then returns their version; sequences under
        way go on with them (chains over whole sequences excepted)."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int = 1,
        max_new_tokens: int,
        steps: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
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
                    Request(tokens, max_new_tokens, own, temperature, top_p, top_k, steps, sample_index=sample_index)
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
        if not requests:
            return
        if isinstance(self.sampler, SequenceChain):
            yield from chains.stream(self, self.sampler, requests)
            return
        batch = Batch(self, requests)
        while batch.admit():
            if (version := self.new_weights()) is not None:
                self.weights_version = version
                batch.weights_changed()
            yield from batch.step()
