"""The part of `unmask bench weights --ray`: a gigabyte of bfloat16 from one actor to several on this machine.

Real transport, real rollout workers (`fetch_weights`, `load_weights`), the learner's own gathering. The model has
LLaDA's architecture and 541 million weights; no checkpoint is read. Three ways take turns:

    views      the parameters' memory is written into the store as it is
    copies     the same from copies that were gathered first
    tensors    the copies as pickled tensors

Each takes a version: publish, then every worker loads it. A sum over all bits of every worker's weights shows that the
version arrived whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import torch

import models
from benchmarks.models import llada_config
from cluster.actors import Launcher
from cluster.calls import ActorSpec, Handle
from cluster.config import ClusterConfig
from cluster.ray_start import ray_session
from cluster.transport import ObjectStoreTransport
from learner.weights import as_arrays, gather, trained_parameters
from models.build import meta_backbone
from models.config import ModelConfig
from rollout.config import RolloutConfig
from rollout.worker import RolloutWorker, Swap

VIEWS, COPIES, TENSORS = "views", "copies", "tensors"
GIGABYTE_MODEL = llada_config(width=1536, layers=16, heads=12, ffn=4608, vocabulary=16384)
TIMEOUT_S = 240.0
NUM_WARM_UP = 2
"""Rounds before the clock: the first write to each page of the store costs several times a later one, and two versions
are alive at a time."""


def empty_model(config: Mapping[str, Any]) -> models.Denoiser:
    """A model in bfloat16 whose weights are whatever was in memory."""
    family = models.family_of(config)
    backbone: Any = meta_backbone(family, dict(config)).to(torch.bfloat16).to_empty(device="cpu")
    return models.Denoiser(backbone.eval(), family=family, config=dict(config))


def sum_of_bits(denoiser: models.Denoiser) -> int:
    """Changes if any bit of any weight does."""
    return sum(int(p.detach().view(torch.int16).sum(dtype=torch.int64)) for p in denoiser.backbone.parameters())


class Source:
    """Stands for rank 0 of a learner: weights that change with every version."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        torch.set_num_threads(1)
        self._denoiser = empty_model(config).requires_grad_(True)

    def change(self, version: int) -> int:
        """Gives every weight other bits; returns their sum."""
        with torch.no_grad():
            for parameter in self._denoiser.backbone.parameters():
                parameter.view(torch.int16).fill_(1000 + version)
        return sum_of_bits(self._denoiser)

    def weights(self, way: str) -> Any:
        """What is published."""
        buckets = gather(trained_parameters(self._denoiser), partitioned=False, keep=True, copy=way != VIEWS)
        return tuple(buckets) if way == TENSORS else tuple(as_arrays(bucket) for bucket in buckets)


class Receiver(RolloutWorker):
    """A rollout worker that needs no checkpoint."""

    def build(self, config: Mapping[str, Any]) -> None:
        """Takes the place of `load`."""
        torch.set_num_threads(1)
        self._denoiser = empty_model(config).requires_grad_(False)

    def load_tensors(self, parts: Sequence[Mapping[str, torch.Tensor]], version: int) -> Swap:
        """`load_weights` for tensors."""
        start = perf_counter()
        named = {name: tensor for part in parts for name, tensor in part.items()}
        models.load_named(self._loaded, named)
        self._version = version
        return Swap(sum(tensor.nbytes for tensor in named.values()), perf_counter() - start)

    def sum_of_bits(self) -> int:
        """Of all weights."""
        return sum_of_bits(self._loaded)


@dataclass
class Way:
    """One way of carrying, and what it took in each measured round."""

    name: str
    publish_s: list[float] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)
    swap_s: list[float] = field(default_factory=list)
    """Of the slowest worker: how long it could make no answer."""

    @property
    def total_s(self) -> list[float]:
        """From the learner's weights to the last worker that has them."""
        return [publish + load for publish, load in zip(self.publish_s, self.load_s, strict=True)]


@dataclass
class Learner:
    """What the transport asks for weights."""

    handle: Handle
    way: str = VIEWS

    def keep_weights(self) -> Any:
        """A reference to the newest ones."""
        return self.handle.call("weights", self.way, timeout_s=TIMEOUT_S, keep=True).result()


def measure(options: argparse.Namespace, config: Mapping[str, Any]) -> tuple[str, dict[str, float], bool]:
    """Report, ratios to pickled tensors, and whether everything arrived."""
    with ray_session(ClusterConfig(num_cpus=options.workers + 1)):
        launcher = Launcher(mode="ray")
        source = launcher.launch(ActorSpec("source", Source, (config,), num_cpus=1))
        workers = [
            launcher.launch(ActorSpec(f"worker-{index}", Receiver, (ModelConfig(), RolloutConfig()), num_cpus=1))
            for index in range(options.workers)
        ]
        for future in [worker.call("build", config, timeout_s=TIMEOUT_S) for worker in workers]:
            future.result()
        learner = Learner(source)
        transport = ObjectStoreTransport(learner)
        ways = [Way(name) for name in (VIEWS, COPIES, TENSORS)]
        version, num_bytes, complete = 0, 0, True
        for round_number in range(-NUM_WARM_UP, options.repetitions):
            # Pickled tensors take most of the time and need no warm store of their own.
            for way in ways[: None if round_number >= 0 else 2]:
                version += 1
                learner.way = way.name
                wanted = source.call("change", version, timeout_s=TIMEOUT_S).result()
                num_bytes = _carry(way, transport, version, workers, is_measured=round_number >= 0)
                found = [worker.call("sum_of_bits", timeout_s=TIMEOUT_S) for worker in workers]
                complete &= all(future.result() == wanted for future in found)
        for handle in [source, *workers]:
            handle.kill()
    ratios = {way.name: _ratio(ways[-1].total_s, way.total_s) for way in ways}
    return _report(ways, ratios, num_bytes, options.workers), ratios, complete


def _carry(
    way: Way, transport: ObjectStoreTransport, version: int, workers: Sequence[Handle], *, is_measured: bool
) -> int:
    """One version to all workers; returns its size."""
    start = perf_counter()
    published = transport.publish(version)
    middle = perf_counter()
    if way.name == TENSORS:
        arguments = (published.reference, version)
        futures = [worker.call("load_tensors", *arguments, timeout_s=TIMEOUT_S) for worker in workers]
    else:
        futures = [transport.send(worker, published, timeout_s=TIMEOUT_S) for worker in workers]
    swaps: list[Swap] = [future.result() for future in futures]
    if is_measured:
        way.publish_s.append(middle - start)
        way.load_s.append(perf_counter() - middle)
        way.swap_s.append(max(swap.seconds for swap in swaps))
    return swaps[0].num_bytes


def _ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    return median(a / b for a, b in zip(slower, faster, strict=True))


def _report(ways: Sequence[Way], ratios: Mapping[str, float], num_bytes: int, num_workers: int) -> str:
    lines = [
        f"{num_bytes / 2**30:.2f} GiB of bfloat16 to {num_workers} workers on this machine, median (range) of seconds",
        "| way | published | all loaded | together | no answers during | times the last row's speed |",
        "|---|---|---|---|---|---|",
    ]
    for way in ways:
        columns = [_spread(values) for values in (way.publish_s, way.load_s, way.total_s, way.swap_s)]
        lines.append(f"| {way.name} | {' | '.join(columns)} | {ratios[way.name]:.1f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
