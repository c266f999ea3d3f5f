"""`unmask bench weights`: how fast new weights get from the learner into a rollout model.

The weights of a 105M model in bfloat16, gathered in buckets, carried, and copied into a second model.

    integer views     numpy arrays over the tensors' memory: what the weight transport publishes
    torch tensors     the same buckets as pickled tensors, which is how an object store takes them

Carried in this process, as an object store does it: the pickled bytes, and the buffers that may stay outside them, are
copied into the store's memory and read from there. With `--ray` the weight transport itself carries a gigabyte from one
actor to four through a local Ray object store (`benchmarks/weights_ray.py`).
"""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import models
from benchmarks import history
from benchmarks.models import hundred_million
from benchmarks.timing import in_turn, machine
from learner.weights import as_arrays, gather, trained_parameters

VIEWS, TENSORS = "integer views", "torch tensors"
Carry = Callable[[object], Any]


def through_memory(value: object) -> Any:
    """Pickle into a store of this process and read it back; large buffers are copied once and never pickled."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    stored = [bytes(buffer.raw()) for buffer in buffers]
    return pickle.loads(text, buffers=stored)


def publish_views(source: models.Denoiser, target: models.Denoiser, carry: Carry) -> int:
    """Carry the weights as arrays; return their size in bytes."""
    buckets = gather(trained_parameters(source), partitioned=False, keep=True)
    received = carry(tuple(as_arrays(bucket) for bucket in buckets))
    arrays = {name: array for part in received for name, array in part.items()}
    models.load_named(target, {name: _tensor(array) for name, array in arrays.items()})
    return sum(array.nbytes for array in arrays.values())


def publish_tensors(source: models.Denoiser, target: models.Denoiser, carry: Carry) -> int:
    """Carry the weights as tensors; return their size in bytes."""
    received = carry(tuple(gather(trained_parameters(source), partitioned=False, keep=True)))
    tensors: Mapping[str, torch.Tensor] = {name: tensor for part in received for name, tensor in part.items()}
    models.load_named(target, tensors)
    return sum(tensor.nbytes for tensor in tensors.values())


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # A store's memory is read-only, which torch cannot express; the tensor is only copied from.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if the second model is not bit for bit the first."""
    parser = argparse.ArgumentParser(
        prog="unmask bench weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ray", action="store_true", help="a gigabyte between actors through a Ray object store")
    parser.add_argument("--workers", type=int, default=4, help="actors that take the weights, with --ray")
    parser.add_argument("--record", action="store_true", help=f"append the ratio to {history.HISTORY.name}")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    return between_actors(options) if options.ray else compare(through_memory, "memory of this process", options)


def between_actors(options: argparse.Namespace, config: Mapping[str, Any] | None = None) -> int:
    """Time the transport between actors; a `config` stands for a smaller model."""
    from benchmarks import weights_ray

    report, ratios, complete = weights_ray.measure(options, config or weights_ray.GIGABYTE_MODEL)
    print(report)
    print("every weight arrived" if complete else "NOT COMPLETE: a worker has other weights than were published")
    if options.record:
        history.append(history.measured(f"weights: Ray object store, {options.workers} workers", ratios))
    return int(not complete)


def compare(carry: Carry, through: str, options: argparse.Namespace) -> int:
    """Time both ways and check what arrived."""
    source, target = hundred_million().requires_grad_(True), hundred_million()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    size = publish_views(source, target, carry)
    same = _equal(source, target)
    publish_tensors(source, target, carry)
    runs = {
        VIEWS: lambda: publish_views(source, target, carry),
        TENSORS: lambda: publish_tensors(source, target, carry),
    }
    timings = in_turn(runs, repetitions=options.repetitions)
    print(f"{size / 1e6:.0f} MB through the {through}\n{timings.table(TENSORS)}")
    for name, seconds in timings.seconds.items():
        print(f"{name}: {size / min(seconds) / 1e9:.2f} GB/s at best")
    print("every weight arrived bit for bit" if same else "NOT IDENTICAL: some weights did not arrive bit for bit")
    if options.record:
        history.append(history.measured(f"weights: {through}", {VIEWS: timings.ratio(VIEWS, TENSORS)}))
    return int(not same)


def _equal(a: models.Denoiser, b: models.Denoiser) -> bool:
    pairs = zip(a.backbone.state_dict().values(), b.backbone.state_dict().values(), strict=True)
    return all(torch.equal(left.view(torch.int16), right.view(torch.int16)) for left, right in pairs)


if __name__ == "__main__":
    raise SystemExit(main())
