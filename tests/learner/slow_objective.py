"""Every objective as a loop: one canvas a forward, the whole canvas's logits, one slot after the other, from formulas.

Masks come from the estimators (with the same seeds); nothing else is shared with what is tested.
"""

import math

import numpy as np
import torch

from learner.estimators import canvases_of
from learner.guide import guide_texts
from learner.work import finished_text
from tests.learner.small_models import MASK


def slot_logprob(denoiser, answer, canvas, slot):
    """log p of one slot's final token, from one canvas alone."""
    start, length = len(answer.prompt_tokens), None
    hidden = np.zeros(start, dtype=bool) if canvas.prompt_masked_P is None else canvas.prompt_masked_P
    tokens = [MASK if hidden[k] else int(token) for k, token in enumerate(answer.prompt_tokens)]
    tokens += [MASK if canvas.masked_T[k] else int(token) for k, token in enumerate(answer.tokens)]
    if denoiser.family.block_causal:
        length = answer.block_length
    logits = denoiser.logits(torch.tensor([tokens]), block_length=length)[0]
    row = logits[max(start + slot - 1, 0) if denoiser.family.shift else start + slot].clone()
    row[MASK] = -math.inf
    return (row / answer.temperature).log_softmax(0)[int(answer.tokens[slot])]


def masks_of(denoiser, samples, objective, draw=0):
    """Canvases and influences of each sample."""
    found = []
    for sample in samples:
        answer, guide = sample.trajectory, None
        if objective.needs_guide:
            (guide,) = guide_texts(denoiser, [finished_text(answer)], config=objective.agdo)
        canvases = canvases_of(answer, answer.scored, objective, family=denoiser.family, draw=draw, guide=guide)
        found.append((canvases, None if guide is None else guide.influence_T))
    return found


def values_of(denoiser, samples, masks):
    """{(sample, canvas, slot): log p}."""
    return {
        (i, c, int(k)): slot_logprob(denoiser, sample.trajectory, canvas, int(k))
        for i, (sample, (canvases, _)) in enumerate(zip(samples, masks, strict=True))
        for c, canvas in enumerate(canvases)
        for k in canvas.slot_K
    }


def normaliser(objective, samples, i, canvases, canvas):
    """Of one slot."""
    answer = samples[i].trajectory
    if objective.normaliser == "token":
        return 1 / sum(int(s.trajectory.scored.sum()) for s in samples)
    if objective.normaliser == "fixed":
        return 1 / (len(samples) * len(answer.tokens))
    if objective.normaliser == "canvas":
        return 1 / (len(samples) * len(canvases) * len(canvas.slot_K))
    return 1 / (len(samples) * int(answer.scored.sum()))


def clipped(objective, ratio, advantage):
    """min(ratio A, clip(ratio) A), and the dual clip."""
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    least = min(ratio * advantage, ratio.clamp(low, high) * advantage)
    if objective.clip_dual is not None and advantage < 0:
        return max(least, torch.tensor(objective.clip_dual * advantage, dtype=ratio.dtype))
    return least


def kl(kind, d):
    """k1, k2, k3."""
    return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kind]


def slow_loss(objective, samples, masks, now, old, anchor=None):
    """The loss of all samples from their slots' log-probabilities."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (sample, (canvases, influence)) in enumerate(zip(samples, masks, strict=True)):
        size = int(sample.trajectory.scored.sum())
        groups = {}  # term -> [(key, factor)], and the canvas of its first slot
        for c, canvas in enumerate(canvases):
            for k, weight in zip(canvas.slot_K.tolist(), canvas.weight_K.tolist(), strict=True):
                key = (i, c, k)
                if objective.ratio == "sequence":
                    groups.setdefault("answer", []).append((key, weight / size, canvas, 1.0))
                elif objective.likelihood == "coupled":
                    groups.setdefault(k, []).append((key, weight, canvas, 1.0))
                else:
                    groups.setdefault(key, []).append((key, 1.0, canvas, weight))
        if objective.loss == "bounds":
            total = total + spg(objective, samples, i, canvases, now)
            continue
        for members in groups.values():
            (_, _, k), _, canvas, outer = members[0]
            x, x_old = (sum(f * v[key] for key, f, _, _ in members) for v in (now, old))
            factor = outer * normaliser(objective, samples, i, canvases, canvas)
            factor *= size if objective.ratio == "sequence" else 1
            advantage = sample.advantage
            if objective.influence:
                advantage += float(np.sign(advantage)) * objective.influence * float(influence[k])
            j = advantage * x if objective.loss == "likelihood" else clipped(objective, (x - x_old).exp(), advantage)
            total = total - factor * j
            if objective.kl_coef:
                d = x - sum(f * anchor[key] for key, f, _, _ in members)
                scale = size if objective.ratio == "sequence" else 1
                total = total + factor * objective.kl_coef * scale * kl(objective.kl, d)
    return total


def spg(objective, samples, i, canvases, now):
    """-A E of one sample: the lower bound for A > 0, a mixture with the upper one for A < 0."""
    lower, draws = 0, {}
    for c, canvas in enumerate(canvases):
        for k, weight in zip(canvas.slot_K.tolist(), canvas.weight_K.tolist(), strict=True):
            lower = lower + weight * now[i, c, k]
            draws.setdefault(k, []).append(weight * (objective.bound_beta * now[i, c, k]).exp())
    upper = sum(torch.log(sum(of_slot)) for of_slot in draws.values()) / objective.bound_beta
    advantage, mix = samples[i].advantage, objective.bound_weight
    bound = lower if advantage > 0 else mix * upper + (1 - mix) * lower
    return -normaliser(objective, samples, i, canvases, canvases[0]) * advantage * bound


def slow_gradients(denoiser, samples, objective, *, weights, frozen=None):
    """Gradients of each inner epoch at given weights (state dictionaries, those before the first step first)."""
    draws = range(objective.num_epochs if objective.redraw_masks else 1)
    denoiser.load_state_dict(weights[0])
    masks = [masks_of(denoiser, samples, objective, draw) for draw in draws]
    with torch.no_grad():
        olds = [values_of(denoiser, samples, of_draw) for of_draw in masks]
        anchors = olds if frozen is None else [values_of(frozen, samples, of_draw) for of_draw in masks]
    gradients = []
    for epoch, state in enumerate(weights):
        index = epoch % len(masks)
        denoiser.load_state_dict(state)
        denoiser.zero_grad()
        now = values_of(denoiser, samples, masks[index])
        slow_loss(objective, samples, masks[index], now, olds[index], anchors[index]).backward()
        gradients.append({name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None})
    denoiser.zero_grad()
    return gradients
