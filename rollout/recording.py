"""From a finished row to its trajectory.

T response slots; those that were given (`Request.fixed`) are left out of the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from models import Denoiser
from rollout.cache_policy import CachePolicy
from rollout.canvas import Canvases
from rollout.records import Trajectory
from rollout.row import Row


def record(
    row: Row,
    canvases: Canvases,
    denoiser: Denoiser,
    policy: CachePolicy,
    *,
    version: int,
    notes: Mapping[str, Sequence[np.ndarray]],
) -> Trajectory:
    """The trajectory of a row as its canvas is now; slots still masked hold the end token.

    `version` is that of the weights of the last forward.
    """
    request, sampler = row.request, row.sampler
    assert sampler is not None
    where = (row.slot, slice(row.prompt_length, row.length))
    free = (
        [slot for slot in range(request.max_new_tokens) if slot not in request.fixed] if request.fixed else slice(None)
    )
    masked_T, token_T = canvases.masked_SN[where].cpu()[free], canvases.token_SN[where].cpu()[free]
    stop_T = ~masked_T & torch.isin(token_T, torch.tensor(denoiser.stop_token_ids))
    ended = bool(stop_T.any()) and not request.fixed
    token_T = torch.where(masked_T, denoiser.eos_token_id, token_T)
    step_map_T = torch.where(masked_T, row.step, canvases.step_map_SN[where].cpu()[free])
    return Trajectory(
        tokens=token_T.numpy(),
        step_map=step_map_T.to(torch.int32).numpy(),
        logprobs=torch.where(masked_T, 0.0, canvases.logprob_SN[where].cpu()[free]).numpy(),
        entropies=torch.where(masked_T, 0.0, canvases.entropy_SN[where].cpu()[free]).numpy(),
        num_steps=row.step,
        num_forwards=row.num_forwards,
        finish_reason="eos" if ended else "length",
        answer_length=int(stop_T.to(torch.int64).argmax()) if ended else len(token_T),
        seed=request.seed,
        sampler=sampler.name,
        exact_likelihood=sampler.exact_likelihood or request.temperature == 0,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        position_logprobs=np.asarray(row.position_logprobs, dtype=np.float32),
        block_length=row.layout.block_length or request.max_new_tokens,
        cache=policy.describe(),
        computed=np.asarray(row.computed, dtype=np.int32).reshape(-1, 2),
        weights_version=(row.first_version, version),
        prompt_tokens=np.asarray(request.prompt_tokens, dtype=np.int64),
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        notes={name: np.stack(values) for name, values in notes.items()},
    )
