"""One rank of the learner: a plain class that an actor wraps, or that a single process calls directly.

The constructor is cheap; `start` loads the model and joins the group. Every method marked collective has to be called
on all ranks of the group at about the same time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learner import checkpoint
from learner.config import LearnerConfig
from learner.records import BatchStats, Sample
from models.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from learner.agdo import Guide
    from learner.config import AgdoConfig
    from learner.engine import LearnerEngine
    from learner.guide import FinishedText
    from learner.sft import MaskedExample
    from models import Denoiser

NEW_TINY = "new-tiny"
"""`model.path` of the built-in model's architecture with random weights."""


class LearnerRank:
    """Holds one rank's share of the model and its optimizer."""

    def __init__(
        self,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        rank: int,
        world_size: int,
        total_steps: int,
        seed: int,
    ) -> None:
        self._model = model
        self._learner = learner
        self._rank = rank
        self._world_size = world_size
        self._total_steps = total_steps
        self._seed = seed
        self._started: LearnerEngine | None = None

    def address(self) -> str:
        """Address under which the other ranks reach this one."""
        return node_address()

    def free_port(self) -> int:
        """A port that is free on this rank's node now; ask late."""
        return free_port()

    def start(self, master_addr: str, master_port: int) -> dict[str, Any]:
        """Loads the model and builds DeepSpeed around it (collective)."""
        import torch

        from learner.engine import prepare_process

        torch.set_num_threads(self._learner.engine.threads_per_rank)
        prepare_process(rank=self._rank, world_size=self._world_size, master_addr=master_addr, master_port=master_port)
        self._started = self._build()
        return self._started.describe()

    def _build(self, *, reads_whole_state: bool = False) -> LearnerEngine:
        import torch

        from learner.engine import LearnerEngine

        torch.manual_seed(self._seed)
        denoiser = self._load_model()
        needs_reference = self._learner.objective.needs_reference and self._model.lora is None
        return LearnerEngine(
            denoiser,
            self._learner,
            total_steps=self._total_steps,
            rank=self._rank,
            world_size=self._world_size,
            reference=self._load_model() if needs_reference else None,
            reads_whole_state=reads_whole_state,
        )

    def update(self, samples: Sequence[Sample], stats: BatchStats) -> dict[str, float]:
        """One policy update from this rank's share of the samples (collective)."""
        from learner.update import policy_update

        return policy_update(
            self._engine,
            samples,
            stats,
            self._learner.objective,
            micro_batch_tokens=self._learner.engine.micro_batch_tokens,
        )

    def sft_step(self, masked: Sequence[MaskedExample], num_examples: int) -> dict[str, float]:
        """One supervised update from this rank's share of the `num_examples` examples of a batch (collective)."""
        engine = self._engine
        losses = [engine.backward(compute) for compute in self._sft_passes(masked, num_examples)]
        taken = engine.step()
        return {**engine.sum_over_ranks({"loss": sum(losses)}), **taken}

    def sft_evaluate(self, masked: Sequence[MaskedExample], num_examples: int) -> dict[str, float]:
        """The supervised loss without an update (collective)."""
        engine = self._engine
        engine.denoiser.eval()
        losses = [float(engine.evaluate(compute)) for compute in self._sft_passes(masked, num_examples)]
        engine.align()
        engine.denoiser.train()
        return engine.sum_over_ranks({"loss": sum(losses)})

    def sft_guides(self, texts: Sequence[FinishedText], config: AgdoConfig) -> list[Guide]:
        """Order and influence of finished texts under the weights as they are (collective)."""
        from learner.guide import FinishedText, guide_batches, guide_texts

        engine = self._engine
        denoiser = engine.denoiser
        batches = guide_batches(texts, micro_batch_tokens=self._learner.engine.micro_batch_tokens)
        found: dict[int, Guide] = {}
        denoiser.eval()
        # Every rank makes as many passes as the busiest one, because with ZeRO-3 all of them gather weights in each.
        token_1 = np.array([denoiser.eos_token_id])
        blank = FinishedText(token_1, token_1, np.ones(1, dtype=bool), 1)
        for number in range(int(engine.max_over_ranks({"passes": float(len(batches))})["passes"])):
            batch = batches[number] if number < len(batches) else []
            chosen = [texts[index] for index in batch] or [blank]
            found |= zip(batch, engine.evaluate(partial(guide_texts, denoiser, chosen, config=config)), strict=False)
        denoiser.train()
        return [found[index] for index in range(len(texts))]

    def _sft_passes(self, masked: Sequence[MaskedExample], num_examples: int) -> list[Callable[[], torch.Tensor]]:
        """The loss of each micro-batch."""
        from learner.plan import micro_batches
        from learner.sft import plan_masked, sft_loss

        denoiser = self._engine.denoiser
        plan = plan_masked(masked, family=denoiser.family)

        def pass_of(group: Sequence[int]) -> Callable[[], torch.Tensor]:
            return lambda: sft_loss(denoiser, plan, group) / num_examples

        return [pass_of(group) for group in micro_batches(plan, self._learner.engine.micro_batch_tokens)]

    def weights(self, *, copy: bool = True) -> tuple[dict[str, np.ndarray], ...] | None:
        """Trained weights on rank 0, as `learner.weights` lays them out; None on the others (collective).

        Without `copy` they may be the model's own memory: for a caller that is done with them before the next update,
        as an actor is, whose return value is written to the object store before its next call begins.
        """
        return self._engine.weights(copy=copy)

    def save(self, path: str, state: dict[str, Any] | None = None) -> str:
        """Writes a checkpoint with the run's counters; it has its final name when this returns (collective).

        Where the disk refuses it, the value says why, and nothing of that name was changed.
        """
        try:
            self._save(Path(path), state or {})
        except OSError as error:
            if self._world_size > 1:  # the other ranks wait for this one: only the end of the group frees them
                raise
            return f"{type(error).__name__}: {error}"
        return ""

    def _save(self, folder: Path, state: dict[str, Any]) -> None:
        engine = self._engine
        if self._rank == 0:
            checkpoint.start(folder)
        engine.barrier()
        partial = checkpoint.partial_folder(folder)
        engine.save_state(partial / "optimizer")
        engine.save_model(partial / "model")
        engine.barrier()
        if self._rank == 0:
            checkpoint.finish(folder, {**state, **engine.describe()})
        engine.barrier()

    def load(self, path: str) -> dict[str, Any]:
        """Restores a checkpoint, also of another number of ranks; returns the run's counters (collective)."""
        state = checkpoint.read_state(Path(path))
        here = self._engine.describe()
        for name in ("zero_stage", "dtype"):
            if state[name] != here[name]:
                raise checkpoint.CheckpointError(
                    f"{path} was saved with {name} = {state[name]}, this run has {here[name]}: "
                    "resume with the same learner.engine settings, or start a new run from its model/ folder"
                )
        # Without ZeRO every rank has the whole state.
        if state["world_size"] == self._world_size or state["zero_stage"] == 0:
            self._engine.load_state(Path(path) / "optimizer")
        else:
            self._load_of_others(Path(path))
        return state

    def _load_of_others(self, path: Path) -> None:
        """Restores what another number of ranks saved: rank 0 puts it together, an engine made for that reads it."""
        from learner.engine import TAG
        from learner.reshard import whole_folder, whole_state

        self._started = None  # before the next one is there, or two models and optimizers would be
        self._started = self._build(reads_whole_state=True)
        with whole_state(path, tag=TAG) if self._rank == 0 else nullcontext():
            self._engine.barrier()
            self._engine.load_state(whole_folder(path))
            self._engine.barrier()

    @property
    def _engine(self) -> LearnerEngine:
        if self._started is None:
            raise RuntimeError("call start() before anything else of a LearnerRank")
        return self._started

    def _load_model(self) -> Denoiser:
        return load_model(self._model, dtype=self._learner.engine.dtype, seed=self._seed)


def node_address() -> str:
    """Address of this node on its default route; loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing: a datagram socket only looks up the route
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


def free_port() -> int:
    """A port of this node that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def load_model(model: ModelConfig, *, dtype: str, seed: int) -> Denoiser:
    """The model that a recipe names, with its adapter if it trains one."""
    import torch

    import models

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if model.path == NEW_TINY:
        denoiser = models.create_tiny(seed).to(device=device, dtype=getattr(torch, dtype))
    else:
        denoiser = models.load(model.path, dtype=getattr(torch, dtype), device=device)
    if model.lora is not None:
        models.apply_lora(denoiser, model.lora, seed=seed)
    return denoiser
