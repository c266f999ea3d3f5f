"""Engines without a model: rollout worker and learner rank with the real ones' interface that compute nothing.

For what is about the controller, not the arithmetic: faults, overlap. Weights are a short vector. An answer is a digit
that follows from weights, prompt and sample alone; an update mixes the digests of its samples into the weights, so any
prompt that is lost, doubled or out of order changes all later weights. What was trained is kept beside the weights in
each checkpoint: a ledger of (step, prompt id, sample).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learner import checkpoint
from learner.config import LearnerConfig
from learner.records import BatchStats, Sample
from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt, Trajectory
from rollout.worker import Swap, own_memory

WIDTH = 8
LEDGER = "ledger.json"
Named = Mapping[str, np.ndarray]


class SketchWorker:
    """A `rollout.worker.RolloutWorker` that sleeps instead of denoising."""

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, *, answer_s: float = 0.0) -> None:
        """`answer_s`: seconds for each answer."""
        self._answer_s = answer_s
        self._version = -1
        self._weights = np.zeros(WIDTH, dtype=np.float64)

    def load(self) -> None:
        """The weights of the checkpoint that every run begins with."""
        self._version, self._weights = 0, np.zeros(WIDTH, dtype=np.float64)

    def fetch_weights(self, named: Named | Sequence[Named]) -> None:
        """Nothing to bring near."""

    offer_weights = fetch_weights

    def load_weights(self, named: Sequence[Named], version: int, serial: int | None = None) -> Swap:
        """Copies them."""
        self._weights, self._version = named[0]["weight"].copy(), version
        return Swap(self._weights.nbytes, 0.0, own_memory())

    def version(self) -> int:
        """Version of the weights that the next answer will be made with."""
        return self._version

    def generate(
        self, prompts: Sequence[Prompt], *, num_samples: int, seed: int | Sequence[int], decoding: DecodingConfig
    ) -> list[list[Trajectory]]:
        """A digit for each answer."""
        time.sleep(self._answer_s * len(prompts) * num_samples)
        return [[self._answer(prompt, index) for index in range(num_samples)] for prompt in prompts]

    def _answer(self, prompt: Prompt, index: int) -> Trajectory:
        digest = hashlib.sha256(self._weights.tobytes() + f"{prompt.id} {index}".encode()).digest()
        return Trajectory(
            tokens=np.array([digest[0], 0]),
            step_map=np.array([0, 1], dtype=np.int32),
            logprobs=np.array([-1.0, 0.0], dtype=np.float32),
            entropies=np.array([1.0, 0.0], dtype=np.float32),
            num_steps=2,
            num_forwards=2,
            finish_reason="eos",
            answer_length=1,
            seed=index,
            sampler="ar",
            exact_likelihood=True,
            temperature=1.0,
            top_p=1.0,
            block_length=2,
            weights_version=(self._version, self._version),
            prompt_tokens=np.array([1]),
            prompt_id=prompt.id,
            sample_index=index,
            text=str(digest[0] % 10),
        )


class SketchRank:
    """A `learner.worker.LearnerRank`, of one, that sleeps instead of training."""

    def __init__(self, model: ModelConfig, learner: LearnerConfig, *, update_s: float = 0.0, **_: Any) -> None:
        self._update_s = update_s
        self._weights = np.zeros(WIDTH, dtype=np.float64)
        self._ledger: list[list[Any]] = []
        self._num_updates = 0

    def address(self) -> str:
        """Nobody else joins."""
        return "127.0.0.1"

    def free_port(self) -> int:
        """Nobody listens."""
        return 0

    def start(self, master_addr: str, master_port: int) -> dict[str, Any]:
        """Ready at once."""
        return {"world_size": 1, "num_trained_parameters": WIDTH, "num_updates": 0}

    def update(self, samples: Sequence[Sample], stats: BatchStats) -> dict[str, float]:
        """Mixes every sample into the weights, in order."""
        time.sleep(self._update_s)
        self._num_updates += 1
        for sample in samples:
            answer = sample.trajectory
            text = f"{answer.prompt_id} {answer.sample_index} {answer.text} {sample.advantage!r}"
            digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint32)
            self._weights = 0.5 * self._weights + digest / 2**32
            self._ledger.append([self._num_updates, answer.prompt_id, answer.sample_index])
        return {"loss": float(self._weights.sum()), "grad_norm": 1.0, "lr": 1.0, "entropy": 1.0}

    def weights(self, *, copy: bool = True) -> tuple[Named, ...]:
        """In one bucket."""
        return ({"weight": self._weights.copy()},)

    def save(self, path: str, state: dict[str, Any] | None = None) -> str:
        """Weights and ledger, as atomic as a real checkpoint."""
        folder = Path(path)
        partial = checkpoint.start(folder)
        (partial / "model").mkdir()
        np.save(partial / "model" / "weights.npy", self._weights)
        (partial / "model" / LEDGER).write_text(json.dumps(self._ledger))
        checkpoint.finish(folder, {**(state or {}), "world_size": 1, "num_updates": self._num_updates})
        return ""

    def load(self, path: str) -> dict[str, Any]:
        """The same again."""
        state = checkpoint.read_state(Path(path))
        self._weights, self._ledger = read(Path(path))
        self._num_updates = state["num_updates"]
        return state


def read(path: Path) -> tuple[np.ndarray, list[list[Any]]]:
    """Weights and ledger of a checkpoint."""
    return np.load(path / "model" / "weights.npy"), json.loads((path / "model" / LEDGER).read_text())
