"""DeepSpeed around one Denoiser: ZeRO 0 to 3, one or more ranks, float32 or bfloat16, full weights or LoRA.

An update is any number of passes followed by one `step`:

    engine.evaluate(compute)   a pass without gradients       engine.backward(compute)   a micro-batch with gradients
    engine.align()             between the two kinds          engine.step()              reduce, clip, AdamW

Losses are divided by global counts before they come here, so gradients are to be *summed* over ranks; DeepSpeed
averages them, hence the factor `world_size` in `backward`. bfloat16 has float32 master weights and adds gradients up in
float32.

Why passes are callables: ZeRO-3 fetches weights in hooks that start with the root module's forward, so every pass has
to go through it. Why ranks are aligned: ZeRO-2 reduces in each backward pass and ZeRO-3 gathers in each forward pass,
so a rank with fewer micro-batches makes up the difference with passes over one token whose loss is multiplied by 0. To
know when, each rank announces what it does next before every pass, which costs one small collective.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from peft.helpers import rescale_adapter_scale
from torch import nn

from learner.config import EngineConfig, LearnerConfig
from learner.memory import has_room
from learner.optimizer import ClippedAdamW, adamw, learning_rate
from learner.weights import as_arrays, gather, trained_parameters
from models import Denoiser, save, token_logprobs
from models.packing import Span

T = TypeVar("T")
TAG = "state"
"""DeepSpeed's name of the one state that a checkpoint holds."""


def prepare_process(*, rank: int, world_size: int, master_addr: str, master_port: int) -> None:
    """Sets what DeepSpeed and torch.distributed read from the environment; call it before building an engine."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",  # each rank is an actor that sees its own devices only
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
        DS_ACCELERATOR="cuda" if torch.cuda.is_available() else "cpu",
    )


class _Next(enum.IntEnum):
    """What a rank announces."""

    ALIGN = 0
    EVALUATE = 1
    BACKWARD = 2


class _Root(nn.Module):
    """The module that DeepSpeed wraps; its forward runs any computation on the denoiser."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, compute: Callable[[], T]) -> T:
        """The computation's own result."""
        return compute()


class LearnerEngine:
    """Trains a Denoiser in place; every rank of the group builds one and calls the collective methods together.

    `reference`: frozen starting weights for a divergence term, whole on every rank whatever the stage. With LoRA they
    are the base weights and cost nothing.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: LearnerConfig,
        *,
        total_steps: int,
        rank: int = 0,
        world_size: int = 1,
        reference: Denoiser | None = None,
        reads_whole_state: bool = False,
    ) -> None:
        """`reads_whole_state`: `load_state` gets what `learner.reshard` put together of any number of ranks."""
        self.denoiser = denoiser
        self.rank = rank
        self.world_size = world_size
        self.num_updates = 0
        self._config = config
        self._total_steps = total_steps
        self._reference = None if reference is None else reference.eval().requires_grad_(False)
        self._has_gradients = False
        self._is_apart = False
        """Whether passes concern the reference model only."""
        self._device = denoiser.device
        if config.engine.zero_stage == 0 and config.engine.dtype == "bfloat16":
            raise ValueError(
                "learner.engine.dtype bfloat16 needs float32 master weights, which zero_stage 0 does not keep; "
                "set zero_stage to 1, or dtype to float32"
            )
        denoiser.train()
        self._optimizer = adamw(denoiser, config.optimizer, clips=config.engine.zero_stage == 0)
        self._reads_whole_state = reads_whole_state
        self._engine = self._wrap(_Root(denoiser))
        denoiser.stack.is_partitioned = config.engine.zero_stage == 3
        denoiser.stack.recompute = self._recomputes()

    # ---- passes

    def evaluate(self, compute: Callable[[], T]) -> T:
        """Runs one pass without gradients and returns its result."""
        if self._is_apart:
            with torch.no_grad():
                return compute()
        self._announce(_Next.EVALUATE)
        return self._evaluate(compute)

    def backward(self, compute: Callable[[], torch.Tensor]) -> float:
        """Runs one micro-batch forward and backward and accumulates its gradients; returns the loss."""
        self._announce(_Next.BACKWARD)
        return self._backward(compute)

    def align(self) -> None:
        """Joins in the passes that other ranks still make; between a phase of `evaluate` and one of `backward`."""
        while (others := self._announce(_Next.ALIGN)) is not _Next.ALIGN:
            (self._evaluate if others is _Next.EVALUATE else self._backward)(self._empty_loss)

    def step(self) -> dict[str, float]:
        """One optimizer update from the accumulated gradients; the norm is that before clipping."""
        if not self._has_gradients:
            self.backward(self._empty_loss)
        self.align()
        rate = learning_rate(self._config.optimizer, step=self.num_updates, total_steps=self._total_steps)
        for group in self._groups:
            group["lr"] = rate
        self._engine.step()
        self._has_gradients = False
        self.num_updates += 1
        clipped = self._optimizer if isinstance(self._optimizer, ClippedAdamW) else None
        norm = clipped.grad_norm if clipped else self._engine.get_global_grad_norm()
        return {"grad_norm": float(norm), "lr": rate}

    @contextlib.contextmanager
    def reference(self) -> Iterator[Denoiser]:
        """The frozen starting weights: the second model, or with LoRA the base with its adapters scaled to 0."""
        if self._reference is not None:
            # Passes over a model that DeepSpeed knows nothing of must not go through its root module: other ranks would
            # gather weights beside them, and wait for this one.
            self._is_apart = True
            try:
                yield self._reference
            finally:
                self._is_apart = False
        elif any(not parameter.requires_grad for parameter in self.denoiser.parameters()):
            with rescale_adapter_scale(self.denoiser.backbone, 0.0):
                yield self.denoiser
        else:
            raise ValueError("no reference weights: build LearnerEngine with reference=, or train a LoRA adapter")

    # ---- ranks

    def sum_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """Sums of values with the same keys on every rank."""
        return self._reduce(values, torch.distributed.ReduceOp.SUM)

    def max_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """Greatest of values with the same keys on every rank."""
        return self._reduce(values, torch.distributed.ReduceOp.MAX)

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()

    # ---- state

    def describe(self) -> dict[str, Any]:
        """What was built, and how far it is."""
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self.denoiser.parameters()]
        return {
            "num_parameters": sum(size for size, _ in sizes),
            "num_trained_parameters": sum(size for size, is_trained in sizes if is_trained),
            "world_size": self.world_size,
            "zero_stage": self._config.engine.zero_stage,
            "dtype": self._config.engine.dtype,
            "activation_checkpointing": self.denoiser.stack.recompute,
            "num_updates": self.num_updates,
        }

    def weights(self, *, copy: bool = True) -> tuple[dict[str, np.ndarray], ...] | None:
        """Trained weights by backbone name in buckets, as `learner.weights` lays them out; None but on rank 0.

        Without `copy` the arrays may be the parameters' own memory, which the next update changes.
        """
        buckets = [as_arrays(bucket) for bucket in self._gather(copy=copy)]
        return tuple(buckets) if self.rank == 0 else None

    def save_model(self, folder: Path) -> None:
        """The model in the published layout (a LoRA run: the adapter), written by rank 0."""
        weights = {name: tensor for bucket in self._gather() for name, tensor in bucket.items()}
        if self.rank == 0:
            save(self.denoiser, folder, weights=weights)

    def save_state(self, folder: Path) -> None:
        """DeepSpeed's own state: weights as trained, master weights, optimizer; frozen weights are left out."""
        client_state = {"num_updates": self.num_updates}
        with _no_prints():
            self._engine.save_checkpoint(
                str(folder), tag=TAG, client_state=client_state, exclude_frozen_parameters=True
            )

    def load_state(self, folder: Path) -> None:
        """Restores what `save_state` wrote on the same number of ranks, or what was put together of another."""
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self._groups]
        with _no_prints():
            path, client_state = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        if path is None:
            raise ValueError(f"{folder} holds no optimizer state; it needs the files that save_state wrote")
        self.num_updates = client_state["num_updates"]
        if self._reads_whole_state:
            # DeepSpeed gives every group the settings of the first, and with ZeRO-3 all of them one count of steps.
            for group, settings in zip(self._groups, groups, strict=True):
                group.update(settings)
            for state in self._optimizer.state.values():
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).clone()

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._engine.optimizer.param_groups
        return groups

    # ---- inside

    def _wrap(self, root: _Root) -> Any:
        with _no_prints():
            import deepspeed

            # A kernel for tensor-parallel inference on CPUs; DeepSpeed would compile it first, for about a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.init_distributed(
                dist_backend="nccl" if self._device.type == "cuda" else "gloo",
                timeout=datetime.timedelta(seconds=self._config.engine.timeout_s),
                verbose=False,
            )
            settings = deepspeed_config(self._config, self._device.type)
            settings |= {"checkpoint": {"load_universal": True}} if self._reads_whole_state else {}
            engine, *_ = deepspeed.initialize(model=root, optimizer=self._optimizer, config=settings)
        return engine

    def _recomputes(self) -> bool:
        """Whether the backward pass computes layers again; the same on every rank, because ZeRO-3 gathers for it."""
        config = self._config.engine
        if config.activation_checkpointing != "auto":
            return config.activation_checkpointing
        trained = [getattr(p, "ds_numel", p.numel()) for p in self.denoiser.parameters() if p.requires_grad]
        itemsize = self.denoiser.backbone.lm_head.weight.element_size()
        # Gradients, and AdamW's two moments and float32 gradients: the first step allocates them.
        gradients = sum(trained) * itemsize // (self.world_size if config.zero_stage >= 2 else 1)
        moments = 12 * sum(trained) // (self.world_size if config.zero_stage else 1)
        fits = has_room(
            self.denoiser,
            num_tokens=config.micro_batch_tokens,
            pending_bytes=gradients + moments,
            num_sharing=1 if self._device.type == "cuda" else self.world_size,
        )
        return bool(self.max_over_ranks({"recompute": float(not fits)})["recompute"])

    def _announce(self, what: _Next) -> _Next:
        """Tells the other ranks what this one does next; returns what the furthest behind of them does."""
        if self._config.engine.zero_stage < 2 or self.world_size == 1:
            return what
        return _Next(int(self.max_over_ranks({"next": float(what)})["next"]))

    def _evaluate(self, compute: Callable[[], T]) -> T:
        results: list[T] = []

        def run() -> None:  # ZeRO-3 looks for tensors in what the root module returns, and knows few types
            results.append(compute())

        with torch.no_grad():
            self._engine(run)
        return results[0]

    def _backward(self, compute: Callable[[], torch.Tensor]) -> float:
        self._has_gradients = True
        loss = self._engine(compute)
        self._engine.backward(loss * self.world_size)
        return float(loss.detach())

    def _gather(self, *, copy: bool = True) -> Iterator[dict[str, torch.Tensor]]:
        partitioned = self._config.engine.zero_stage == 3
        return gather(trained_parameters(self.denoiser), partitioned=partitioned, keep=self.rank == 0, copy=copy)

    def _empty_loss(self) -> torch.Tensor:
        """0, through the same modules in the same order as a micro-batch."""
        token_1 = torch.full((1,), self.denoiser.eos_token_id, device=self._device)
        pending = self.denoiser.start(token_1, self.denoiser.packing([Span(0, 0, 1, 1)]))
        logprob_1, _ = token_logprobs(self.denoiser, pending.hidden(torch.zeros_like(token_1), [1]), token_1)
        return 0.0 * logprob_1.sum()

    def _reduce(self, values: dict[str, float], operation: Any) -> dict[str, float]:
        if self.world_size == 1:
            return dict(values)
        reduced = torch.tensor(list(values.values()), dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(reduced, op=operation)
        return dict(zip(values, reduced.tolist(), strict=True))


def _no_prints() -> contextlib.AbstractContextManager[Any]:
    """Silences DeepSpeed's prints, not its log: the terminal belongs to the command line."""
    return contextlib.redirect_stdout(io.StringIO())


def check_offload(config: EngineConfig) -> None:
    """Refuse what DeepSpeed cannot move to the CPU."""
    least = {"none": 0, "optimizer": 1, "parameters": 3}[config.offload]
    if config.zero_stage < least:
        raise ValueError(
            f"learner.engine.offload {config.offload!r} needs zero_stage {least}{' or more' if least < 3 else ''}, got "
            f"{config.zero_stage}; set zero_stage, or offload to none"
        )


def deepspeed_config(config: LearnerConfig, device_type: str) -> dict[str, Any]:
    """DeepSpeed's settings; `managed_gradient_accumulation: False` lets every `step` be an update."""
    overlap = config.engine.overlap_comm
    if overlap is True and device_type == "cpu":
        raise ValueError(
            "learner.engine.overlap_comm true needs GPUs: on CPUs nothing runs beside the backward pass; "
            "set it to auto or false"
        )
    is_bfloat16 = config.engine.dtype == "bfloat16"
    check_offload(config.engine)
    on_cpu = {"device": "cpu", "pin_memory": device_type != "cpu"}
    offload: dict[str, Any] = {"offload_optimizer": on_cpu} if config.engine.offload != "none" else {}
    if config.engine.offload == "parameters":
        offload["offload_param"] = on_cpu
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # Without ZeRO, DeepSpeed would clip but not tell the norm; there the optimizer does both.
        "gradient_clipping": config.optimizer.max_grad_norm if config.engine.zero_stage else 0.0,
        "bf16": {"enabled": is_bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            "overlap_comm": device_type != "cpu" and config.engine.num_ranks > 1 if overlap == "auto" else overlap,
            **offload,
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
