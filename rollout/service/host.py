"""The engine side of the service: models by name, an engine each, and jobs turned into what is heard of them.

A model is loaded when it is first asked for; where too many are loaded the one that was idle longest goes. Adapters of
one base share its weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.cache_policy import CachePolicy
from rollout.live import Decoding, Event, Finished, LiveEngine
from rollout.records import Trajectory
from rollout.request import FieldError, Request, TooLongError, about, sequence_seed
from rollout.service.assembly import Assembly
from rollout.service.catalog import check_options
from rollout.service.config import EngineConfig
from rollout.service.loop import EngineFailedError, EngineLoop, EngineLostError
from rollout.service.work import Accepted, Done, EngineState, Heard, Job, ModelCard, Refused, Stepped

if TYPE_CHECKING:
    from models import Denoiser


@dataclass
class Served:
    """A loaded model and its engine."""

    name: str
    denoiser: Denoiser
    loop: EngineLoop
    last_used: float = field(default_factory=time.monotonic)
    texts: dict[int, str] = field(default_factory=dict)
    """Tokens met so far, as text."""

    def text_of(self, token: int) -> str:
        """One token as text; an end or mask token by its name."""
        if token not in self.texts:
            assert self.denoiser.tokenizer is not None
            self.texts[token] = str(self.denoiser.tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self.texts[token]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer up to its first end token."""
        import models

        return models.decode_answer(self.denoiser, tokens)


class ModelHost:
    """Answers jobs with the models that it was given by name; the first one is the default."""

    def __init__(self, sources: Mapping[str, str], config: EngineConfig, *, replica: str = "local") -> None:
        self.sources, self._config, self._replica = dict(sources), config, replica
        self._served: dict[str, Served] = {}
        self._loading: dict[str, asyncio.Task[Served]] = {}

    async def start(self) -> None:
        """Load the default model."""
        await self.served(next(iter(self.sources)))

    async def run(self, job: Job) -> AsyncGenerator[list[Heard], None]:
        """What is heard of a job, in batches: all that has happened since the last one was taken."""
        try:
            async with aclosing(self._answer(job)) as batches:
                async for batch in batches:
                    yield batch
        except TimeoutError:
            yield [Refused("timeout", f"the answer was not finished within {job.timeout_s:g} s; ask for less")]
        except EngineLostError as error:
            yield [Refused("failed" if isinstance(error, EngineFailedError) else "lost", str(error))]
        except FieldError as error:
            field = job.prompt_field if error.field == "prompt" else error.field
            yield [Refused("too_long" if isinstance(error, TooLongError) else "invalid", str(error), field)]
        except (ValueError, KeyError) as error:
            param = "model" if job.model not in self.sources else None
            yield [Refused("invalid" if param is None else "unknown_model", str(error), param)]

    async def _answer(self, job: Job) -> AsyncGenerator[list[Heard], None]:
        # A timeout belongs to the task that enters it, and a stream may be read by several: it never spans a yield.
        until = asyncio.get_running_loop().time() + job.timeout_s
        async with asyncio.timeout_at(until):
            served = await self.served(job.model)
        with about("prompt"):
            requests, accepted = _requests(served.denoiser, job)
        waiting = served.loop.engine.num_waiting
        if waiting >= self._config.max_waiting:
            yield [Refused("overloaded", f"{waiting} sequences wait for a place in the engine; try again later")]
            return
        answers = _Answers(served, job, requests)
        ticket = served.loop.submit(requests, _decoding(job), listens=job.streams or bool(job.stop))
        try:
            batch: list[Heard] = [accepted]
            while ticket.left:
                async with asyncio.timeout_at(until):
                    events = await ticket.read()
                batch += [heard for sample, event in events for heard in answers.hear(sample, event)]
                for heard in batch:
                    if isinstance(heard, Done):
                        ticket.drop(heard.sample)
                if batch:
                    yield batch
                batch = []
        finally:
            ticket.close()

    async def served(self, name: str) -> Served:
        """The model of this name, loaded if need be. Raises ValueError for an unknown name."""
        if name not in self.sources:
            raise ValueError(f"no model {name!r} is served here; served: {', '.join(self.sources)}")
        if name not in self._served:
            if name not in self._loading:
                self._loading[name] = asyncio.create_task(self._load(name))
            try:
                await asyncio.shield(self._loading[name])
            finally:
                if name in self._loading and self._loading[name].done():
                    del self._loading[name]
        found = self._served[name]
        found.last_used = time.monotonic()
        return found

    async def unload(self, name: str) -> None:
        """Let go of a model; what is under way ends with a retryable refusal."""
        served = self._served.pop(name, None)
        if served is not None:
            await asyncio.to_thread(served.loop.close)

    async def models(self) -> list[ModelCard]:
        """Cards of all models, the default first."""
        return [_card(name, self._served.get(name)) for name in self.sources]

    async def states(self) -> list[EngineState]:
        """Numbers of the loaded engines."""
        return [self.state_of(served) for served in self._served.values()]

    def state_of(self, served: Served) -> EngineState:
        """Numbers of one engine."""
        return served.loop.state(self._replica if len(self.sources) == 1 else f"{self._replica}/{served.name}")

    @property
    def is_healthy(self) -> bool:
        """Whether every engine's thread lives and its last step went well."""
        return all(served.loop.is_healthy for served in self._served.values())

    async def _load(self, name: str) -> Served:
        await self._make_room()
        denoiser = await asyncio.to_thread(self.read, self.sources[name])
        engine = LiveEngine(
            denoiser,
            max_batch_tokens=self._config.max_batch_tokens,
            max_batch_rows=self._config.max_batch_rows,
            max_length=self._config.max_length,
        )
        self._served[name] = Served(
            name, denoiser, EngineLoop(engine, name=f"engine-{name}", threads=self._config.threads)
        )
        return self._served[name]

    def read(self, path: str) -> Denoiser:
        """A model from a folder, ready to answer; an adapter shares its base with a loaded model of the same base."""
        import torch

        import models

        device = "cuda" if torch.cuda.is_available() else "cpu"
        denoiser = models.load(path, dtype=getattr(torch, self._config.dtype), device=device)
        if denoiser.tokenizer is None:
            raise ValueError(f"{path} has no tokenizer files; it cannot be served")
        for served in list(self._served.values()):
            if _is_adapter(path) and served.denoiser.source == denoiser.source:
                _share_weights(denoiser, served.denoiser)
        return denoiser.eval().requires_grad_(False)

    async def _make_room(self) -> None:
        """Let go of idle models until one more may be loaded."""
        while len(self._served) >= self._config.max_loaded:
            idle = [served for served in self._served.values() if not served.loop.num_owned]
            if not idle:
                raise EngineLostError("every loaded model is in use; try again later")
            await self.unload(min(idle, key=lambda served: served.last_used).name)


class _Answers:
    """The samples of a job, from events of the engine to what the client hears."""

    def __init__(self, served: Served, job: Job, requests: Sequence[Request]) -> None:
        self._served, self._job = served, job
        self._listens = job.streams or bool(job.stop)
        self._parts = [
            Assembly(
                request.max_new_tokens - len(request.fixed),
                stop=job.stop,
                stop_ids=served.denoiser.stop_token_ids,
                decode=served.decode,
            )
            for request in requests
        ]
        self._ended: set[int] = set()

    def hear(self, sample: int, event: Event) -> list[Heard]:
        """What one event comes to; nothing after the end of a sample."""
        if sample in self._ended:
            return []
        if isinstance(event, Finished):
            self._ended.add(sample)
            return [self._finished(sample, event.trajectory)]
        part = self._parts[sample]
        delta = part.add(event)
        heard: list[Heard] = []
        if self._job.streams:
            texts = [self._served.text_of(token) for token in event.tokens]
            heard.append(
                Stepped(
                    sample,
                    event.step,
                    event.num_forwards,
                    event.slots,
                    event.tokens,
                    texts,
                    event.logprobs,
                    event.entropies,
                    delta,
                )
            )
        if part.text is not None:
            self._ended.add(sample)
            heard.append(self._stopped(sample))
        return heard

    def _finished(self, sample: int, trajectory: Trajectory) -> Done:
        part, job = self._parts[sample], self._job
        is_infill = job.segments is not None
        tokens = trajectory.tokens.tolist()
        segments = self._segments(tokens) if is_infill else None
        text = self._served.decode(tokens) if segments is None else "".join(segments)
        delta, reason = "", trajectory.finish_reason
        if segments is None:
            delta = part.finish(text)
            if part.text is not None:
                return self._stopped(sample, delta)
        return Done(
            sample,
            text,
            delta,
            len(tokens) if is_infill else trajectory.answer_length,
            tokens,
            [self._served.text_of(token) for token in tokens],
            trajectory.step_map.tolist(),
            trajectory.logprobs.tolist(),
            trajectory.entropies.tolist(),
            num_steps=trajectory.num_steps,
            num_forwards=trajectory.num_forwards,
            finish_reason=reason,
            weights_version=trajectory.weights_version,
            exact_likelihood=trajectory.exact_likelihood,
            sampler=trajectory.sampler,
            segments=segments,
        )

    def _stopped(self, sample: int, delta: str = "") -> Done:
        """A sample that a stop text has ended: what stands before it."""
        part, version = self._parts[sample], self._served.loop.engine.weights_version
        assert part.text is not None
        tokens = part.tokens(part.length)
        steps, logprobs, entropies = part.history(part.length)
        return Done(
            sample,
            part.text,
            delta,
            len(tokens),
            tokens,
            [self._served.text_of(token) for token in tokens],
            steps,
            logprobs,
            entropies,
            num_steps=part.num_steps,
            num_forwards=part.num_forwards,
            finish_reason="stop",
            weights_version=(version, version),
            exact_likelihood=False,
            sampler=self._job.sampler,
        )

    def _segments(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """Texts of an infill in order, each hole up to its first end token."""
        assert self._job.segments is not None
        texts, at = [], 0
        for segment in self._job.segments:
            if isinstance(segment, str):
                texts.append(segment)
                continue
            texts.append(self._served.decode(tokens[at : at + segment]))
            at += segment
        return tuple(texts)


def _requests(denoiser: Denoiser, job: Job) -> tuple[list[Request], Accepted]:
    """The sequences of a job. An answer's seed comes from the job's, the prompt's tokens and the number of the sample,
    as in `Engine.generate`."""
    import models

    fixed: dict[int, int] = {}
    num_slots = job.max_new_tokens
    if job.segments is not None:
        tokens, fixed, num_slots = _holes(denoiser, job.segments)
        shown = "".join(segment for segment in job.segments if isinstance(segment, str))
    elif job.tokens is not None:
        tokens = list(job.tokens)
        if denoiser.mask_token_id in tokens:
            raise ValueError("the prompt holds the mask token; the prompt may not, only the answer is denoised")
        if tokens and not 0 <= min(tokens) <= max(tokens) < denoiser.vocab_size:
            raise ValueError(f"prompt holds a token id outside 0..{denoiser.vocab_size - 1}")
        assert denoiser.tokenizer is not None
        shown = str(denoiser.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    else:
        tokens = models.encode_prompt(denoiser, job.text, job.messages)
        shown = job.text or ""
    key = ",".join(map(str, tokens)) + "".join(f"|{slot}:{token}" for slot, token in fixed.items())
    requests = [
        Request(
            tokens,
            num_slots,
            seed=sequence_seed(job.seed, key, sample),
            temperature=job.temperature,
            top_p=job.top_p,
            top_k=job.top_k,
            steps=job.steps,
            sample_index=sample,
            bars_end=job.bars_end,
            fixed=fixed,
        )
        for sample in range(job.num_samples)
    ]
    return requests, Accepted(len(tokens) + len(fixed), shown)


def _holes(denoiser: Denoiser, segments: Sequence[str | int]) -> tuple[list[int], dict[int, int], int]:
    """Prompt tokens, given response slots, and number of response slots of an infill."""
    import models

    prompt: list[int] = []
    fixed: dict[int, int] = {}
    num_slots = 0
    for segment in segments:
        if isinstance(segment, int):
            num_slots += segment
            continue
        tokens = models.encode_prompt(denoiser, segment) if segment else []
        if num_slots == 0:
            prompt += tokens
        else:
            fixed |= {num_slots + place: token for place, token in enumerate(tokens)}
            num_slots += len(tokens)
    if not prompt and not fixed:
        raise ValueError("an infill needs some text beside its holes")
    return prompt, fixed, num_slots


def _decoding(job: Job) -> Decoding:
    with about("sampler"):
        check_options(job.sampler, job.options)
    return Decoding(job.sampler, job.options, job.block_length, CachePolicy(job.cache))


def _card(name: str, served: Served | None) -> ModelCard:
    if served is None:
        return ModelCard(name)
    denoiser = served.denoiser
    return ModelCard(
        name,
        families=(denoiser.family.name,),
        max_length=served.loop.engine.max_length,
        block_causal=denoiser.family.block_causal,
        block_length=denoiser.block_length,
        can_infill=not denoiser.family.block_causal,
        weights_version=served.loop.engine.weights_version,
        is_loaded=True,
    )


def _is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").exists()


def _share_weights(adapted: Denoiser, other: Denoiser) -> None:
    """Let a model with adapters use the base weights of another one of the same base."""
    theirs = dict(other.backbone.named_parameters())
    for name, parameter in adapted.backbone.named_parameters():
        base = theirs.get(name) if name in theirs else theirs.get(name.replace(".base_layer.", "."))
        if ".lora_" not in name and base is not None and base.shape == parameter.shape:
            parameter.data = base.data
