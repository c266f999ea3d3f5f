"""A rollout worker: holds a model, answers prompts with it, and takes new weights by version.

A plain class; a pool wraps it in an actor. The constructor costs nothing, `load` does the heavy part and may be
repeated. An answer depends on the run's seed, the prompt's id and the number of the sample, never on which worker
makes it or what it works on beside. After `load` the version is 0, that of the published checkpoint; before,
`NOT_LOADED`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt, Trajectory
from rollout.request import Request, sequence_seed

if TYPE_CHECKING:
    import torch

    from models import Denoiser

NOT_LOADED = -1
PAGE_BYTES = 4096
Named = Mapping[str, np.ndarray]
"""Weights by the backbone's parameter names; bfloat16 travels as uint16, because numpy has no such type."""


@dataclass(frozen=True)
class Swap:
    """How a worker took new weights."""

    num_bytes: int
    seconds: float
    """Between two answers: how long no answer could be made."""
    own_bytes: int = 0
    """Memory of the worker's process alone; 0 where the system does not tell."""


class RolloutWorker:
    """Answers prompts with one model."""

    def __init__(self, model: ModelConfig, rollout: RolloutConfig) -> None:
        self._model = model
        self._rollout = rollout
        self._denoiser: Denoiser | None = None
        self._version = NOT_LOADED
        self._offered: tuple[Named | Sequence[Named], int, int] | None = None
        self._serial = 0
        self._swap = Swap(0, 0.0)

    def load(self) -> None:
        """Reads the checkpoint and puts it on the device."""
        import torch

        import models

        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(self._rollout.threads_per_worker)
        self._version, self._serial, self._offered = NOT_LOADED, 0, None
        denoiser = models.load(self._model.path, dtype=getattr(torch, self._model.dtype), device=device)
        if self._model.lora is not None:
            models.apply_lora(denoiser, self._model.lora)
        denoiser.stack.compile(self._rollout.compile_mode)
        self._denoiser = denoiser.eval().requires_grad_(False)
        self._version = 0

    def fetch_weights(self, named: Named | Sequence[Named]) -> None:
        """Brings weights that `load_weights` gets next into reach, beside a `generate` that is still under way.

        When this is called, an object store has brought them to this machine. One read of every page maps them into
        this process, so that the copy that answers wait for does not have to.
        """
        for part in [named] if isinstance(named, Mapping) else named:
            for array in part.values():
                array.reshape(-1)[:: max(1, PAGE_BYTES // array.itemsize)].max(initial=0)

    def offer_weights(self, named: Named | Sequence[Named], version: int, serial: int) -> None:
        """The same for a `generate` that is to go on with these weights: it takes them before its next forward."""
        self.fetch_weights(named)
        self._offered = (named, version, serial)

    def load_weights(self, named: Named | Sequence[Named], version: int, serial: int | None = None) -> Swap:
        """Copies weights into the model, at once and completely.

        `named` may come in several parts. Nothing of it is kept: arrays from an object store share their memory with
        every other reader. Of what was published, `serial` counts the order, also where a version comes twice: nothing
        is loaded that a `generate` has taken already.
        """
        import models

        if serial is not None:
            if serial <= self._serial:
                return self._swap
            self._serial = serial
        start = time.perf_counter()
        parts = [named] if isinstance(named, Mapping) else named
        arrays = {name: array for part in parts for name, array in part.items()}
        models.load_named(self._loaded, {name: _tensor(array) for name, array in arrays.items()})
        self._version = version
        num_bytes = sum(array.nbytes for array in arrays.values())
        self._swap = Swap(num_bytes, time.perf_counter() - start, own_memory())
        return self._swap

    def version(self) -> int:
        """Version of the weights that the next answer will be made with."""
        return self._version

    def generate(
        self, prompts: Sequence[Prompt], *, num_samples: int, seed: int | Sequence[int], decoding: DecodingConfig
    ) -> list[list[Trajectory]]:
        """Answers of each prompt, in the order of the prompts and with their text. `seed`: for all, or one a prompt."""
        import models
        import samplers
        from rollout.engine import Engine

        denoiser = self._loaded
        engine = Engine(
            denoiser,
            samplers.build(decoding.sampler.name, **decoding.sampler.options),
            block_length=decoding.block_length,
            cache=decoding.cache.policy(),
            max_batch_tokens=self._rollout.max_batch_tokens,
            max_batch_rows=self._rollout.max_batch_rows,
        )
        engine.weights_version = self._version
        engine.new_weights = self._take_offered
        seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
        requests = [
            request
            for prompt, own_seed in zip(prompts, seeds, strict=True)
            for request in _requests(
                prompt,
                models.encode_prompt(denoiser, prompt.text, prompt.messages),
                num_samples=num_samples,
                seed=own_seed,
                decoding=decoding,
            )
        ]
        answers = [_with_text(trajectory, denoiser) for trajectory in engine.run(requests)]
        return [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]

    def _take_offered(self) -> int | None:
        """Between two forwards: the version of weights that have come meanwhile and are now in the model."""
        offered, self._offered = self._offered, None
        if offered is None or offered[2] <= self._serial:
            return None
        self.load_weights(*offered)
        return offered[1]

    @property
    def _loaded(self) -> Denoiser:
        if self._denoiser is None:
            raise RuntimeError("call load() before anything else of a RolloutWorker")
        return self._denoiser


def own_memory() -> int:
    """Bytes of memory that this process shares with nobody; 0 where the system does not tell (it is not Linux)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def _requests(
    prompt: Prompt, tokens: Sequence[int], *, num_samples: int, seed: int, decoding: DecodingConfig
) -> list[Request]:
    return [
        Request(
            prompt_tokens=tokens,
            max_new_tokens=decoding.max_new_tokens,
            seed=sequence_seed(seed, prompt.id, sample_index),
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            steps=decoding.steps,
            prompt_id=prompt.id,
            sample_index=sample_index,
        )
        for sample_index in range(num_samples)
    ]


def _with_text(trajectory: Trajectory, denoiser: Denoiser) -> Trajectory:
    import models

    answer = trajectory.tokens[: trajectory.answer_length]
    return replace(trajectory, text=models.decode_answer(denoiser, answer.tolist()))


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory, for reading."""
    import torch

    with warnings.catch_warnings():
        # Arrays out of the object store are read-only, which torch cannot express; the tensor is only copied from.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
