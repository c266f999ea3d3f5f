"""Trained weights as they leave the learner: buckets of numpy arrays by the backbone's parameter names.

numpy has no bfloat16, so such a tensor travels as a view of its bits, uint16; any other dtype travels as itself.
Readers turn uint16 back with `.view(torch.bfloat16)`. A run with adapters ships the adapters alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from models import Denoiser

BUCKET_BYTES = 256 * 2**20


def trained_parameters(denoiser: Denoiser) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by backbone name; what `models.load_named` takes."""
    return {name: value for name, value in denoiser.backbone.named_parameters() if value.requires_grad}


def gather(
    parameters: Mapping[str, nn.Parameter],
    *,
    partitioned: bool,
    keep: bool,
    copy: bool = True,
    bucket_bytes: int = BUCKET_BYTES,
) -> Iterator[dict[str, torch.Tensor]]:
    """Weights on the CPU, bucket by bucket, on the ranks that `keep` them; empty buckets on the others.

    With `partitioned` (ZeRO-3) all ranks have to join in, and no more than one bucket of whole parameters exists on a
    device at a time. Without `copy` whole parameters that lie on the CPU are given as they are, for a caller that reads
    them before the next update: a copy of a gigabyte takes longer than to write it into an object store.
    """
    for bucket in _buckets(parameters, bucket_bytes):
        if partitioned:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(bucket.values())):
                yield _on_cpu(bucket, copy=True) if keep else {}
        else:
            yield _on_cpu(bucket, copy=copy) if keep else {}


def as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Arrays over the tensors' memory."""
    return {
        name: (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in tensors.items()
    }


def _buckets(parameters: Mapping[str, nn.Parameter], bucket_bytes: int) -> Iterator[dict[str, nn.Parameter]]:
    bucket: dict[str, nn.Parameter] = {}
    filled = 0
    for name, parameter in parameters.items():
        size = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if bucket and filled + size > bucket_bytes:
            yield bucket
            bucket, filled = {}, 0
        bucket[name] = parameter
        filled += size
    if bucket:
        yield bucket


def _on_cpu(bucket: Mapping[str, nn.Parameter], *, copy: bool) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().to("cpu", copy=copy).contiguous() for name, parameter in bucket.items()}
