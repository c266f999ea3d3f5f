"""The slow, obvious decoder: one sequence, one step at a time, whole vocabulary at every position, no batching.

Every fast path must equal it token by token. It shares with the engine the definition of the random numbers, no more.
"""

import math

import torch

from samplers.randomness import POSITION_STREAM, TOKEN_STREAM, uniform


def number(seed: int, step: int, slot: int, stream: int) -> float:
    return float(uniform(torch.tensor([seed]), torch.tensor([step]), torch.tensor([slot]), stream=stream))


def draw(logits: torch.Tensor, temperature: float, top_p: float, u: float) -> tuple[int, float]:
    if temperature == 0:
        token = int(logits.argmax())
        return token, float(logits.log_softmax(0)[token])
    p = (logits / temperature).softmax(0)
    if top_p < 1:
        kept, mass = [], 0.0
        for token in sorted(range(len(p)), key=lambda token: (-float(p[token]), token)):
            if mass >= top_p:
                break
            kept.append(token)
            mass += float(p[token])
        p = torch.tensor([float(p[token]) if token in kept else 0.0 for token in range(len(p))])
        p = p / p.sum()
    running, target = 0.0, u * float(p.double().sum())
    for token in range(len(p)):
        running += float(p[token].double())
        if running > target and p[token] > 0:
            return token, math.log(float(p[token]))
    raise AssertionError("no token")


def score(name: str, p: torch.Tensor, seed: int, step: int, slot: int) -> float:
    top = p.sort(descending=True).values
    if name in ("confidence", "threshold"):
        return float(top[0])
    if name == "margin":
        return float(top[0] - top[1])
    if name == "entropy":
        return float((p[p > 0] * p[p > 0].log()).sum())
    if name == "ar":
        return float(-slot)
    if name == "random":
        return float(torch.tensor(number(seed, step, slot, POSITION_STREAM), dtype=torch.float32))
    raise AssertionError(name)


def decode(  # noqa: C901 - on purpose one straight function
    denoiser,
    prompt,
    *,
    name,
    max_new_tokens,
    block_length,
    temperature,
    top_p,
    seed,
    tokens_per_step=1,
    tau=None,
    steps=None,
    predict=None,
):
    """Return tokens, step_map, logprobs, number of steps.

    `predict(visible tokens, block, step in block)` gives raw logits (N, V); the whole canvas through the model if None.
    """
    mask, stops = denoiser.mask_token_id, set(denoiser.stop_token_ids)
    causal, shift = denoiser.family.block_causal, denoiser.family.shift
    start, end = len(prompt), len(prompt) + max_new_tokens
    canvas = list(prompt) + [mask] * max_new_tokens
    masked = set(range(start, end))
    step_map, logprobs, step = {}, {}, 0
    origin = 0 if causal else start
    size = block_length or max_new_tokens
    blocks = [(max(b, start), min(b + size, end)) for b in range(origin, end, size) if b + size > start]
    steps_per_block = None if steps is None else math.ceil(steps / len(blocks))
    for first, last in blocks:
        in_block, size_at_start = 0, last - first
        while any(k in masked for k in range(first, last)):
            visible = canvas[: min(((first // size) + 1) * size, end)] if causal else canvas
            if predict is None:
                raw = denoiser.logits(torch.tensor([visible]), block_length=size if causal else None)[0].float()
            else:
                raw = predict(visible, (first, last), in_block)
            raw[:, mask] = -math.inf
            open_slots = [k for k in range(first, last) if k in masked]
            if denoiser.family.first_slot_alone and open_slots[0] % size == 0:
                open_slots = open_slots[:1]
            law = {k: raw[max(k - 1, 0) if shift else k] for k in open_slots}
            allowed = open_slots
            if block_length is None and not causal:  # the end guard of full diffusion
                allowed = [k for k in open_slots if int(law[k].argmax()) not in stops or k == open_slots[0]]
            drawn = {
                k: draw(law[k], temperature, top_p, number(seed, step, k - start, TOKEN_STREAM))
                for k in (allowed if name == "lcr" else [])
            }
            if name == "lcr":
                rank = {k: float(law[k].softmax(0)[drawn[k][0]]) for k in allowed}
            else:
                rank = {k: score(name, law[k].softmax(0), seed, step, k - start) for k in allowed}
            order = sorted(allowed, key=lambda k: (-rank[k], k))
            if steps_per_block is not None:
                number_now = size_at_start // steps_per_block + (in_block < size_at_start % steps_per_block)
            elif tau is not None:
                number_now = sum(float(law[k].softmax(0).max()) >= tau for k in allowed)
            else:
                number_now = tokens_per_step
            for k in order[: max(1, number_now)]:
                token, logprob = drawn.get(k) or draw(
                    law[k], temperature, top_p, number(seed, step, k - start, TOKEN_STREAM)
                )
                canvas[k], logprobs[k], step_map[k] = token, logprob, step
                masked.discard(k)
            step += 1
            in_block += 1
            ends = [k for k in range(start, end) if k not in masked and canvas[k] in stops]
            if ends and not any(k in masked for k in range(start, ends[0])):
                masked_left = sorted(masked)
                for k in masked_left:
                    canvas[k] = denoiser.eos_token_id
                tail = set(masked_left)
                masked.clear()
                return (
                    canvas[start:],
                    [step if k in tail else step_map[k] for k in range(start, end)],
                    [0.0 if k in tail else logprobs[k] for k in range(start, end)],
                    step,
                )
    return canvas[start:], [step_map[k] for k in range(start, end)], [logprobs[k] for k in range(start, end)], step
