"""The published decoders at temperature 0, one sequence at a time, one obvious step after another.

Written from the samplers that README.md names, on nothing but a function `predict(tokens, block_length) -> (N, V)` that
gives a model's raw logits at every position. They share no code with `samplers/` or `rollout/`.

The mask token stays in the law that slots are ranked by, as it does in the published code: its probability lowers a
slot's confidence.
"""

import math

import torch


class MaskPredictedError(Exception):
    """The most likely token of a chosen slot is the mask token; what follows in the published code is of no use."""


class Canvas:
    """A sequence being filled; remembers when each slot was, and how close any decision came to a tie."""

    def __init__(self, prompt, num_slots, mask):
        self.mask = mask
        self.tokens = [*prompt, *[mask] * num_slots]
        self.filled_at = [-1] * len(self.tokens)
        self.token_margin = self.choice_margin = math.inf

    def masked(self, first=0, last=None):
        return [k for k in range(len(self.tokens))[first:last] if self.tokens[k] == self.mask]

    def best(self, score, number):
        """The slots of highest score."""
        order = sorted(score, key=lambda slot: -score[slot])
        if 0 < number < len(order):
            self.choice_margin = min(self.choice_margin, score[order[number - 1]] - score[order[number]])
        return order[:number]

    def above(self, score, threshold):
        self.choice_margin = min([self.choice_margin, *(abs(value - threshold) for value in score.values())])
        return [slot for slot in score if score[slot] > threshold]

    def fill(self, law, slots, step, *, for_good=True):
        """The most likely token at each of these slots; the mask token only where slots may be filled again."""
        for slot in slots:
            (top, second), (token, _) = law[slot].topk(2)
            self.token_margin = min(self.token_margin, float(top - second))
            if for_good and token == self.mask:
                raise MaskPredictedError(slot)
            self.tokens[slot], self.filled_at[slot] = int(token), step


def laws(logits_NV, slots, *, shift):
    """softmax at each slot; where logits are shifted, slot k is predicted at k - 1."""
    return {k: logits_NV[max(k - 1, 0) if shift else k].double().softmax(-1) for k in slots}


def confidence(law):
    return {k: float(p.max()) for k, p in law.items()}


def margin(law):
    return {k: float(p.topk(2).values @ torch.tensor([1.0, -1.0], dtype=p.dtype)) for k, p in law.items()}


def negative_entropy(law):
    return {k: float((p * p.log()).sum()) for k, p in law.items()}


def llada(predict, prompt, args):
    """LLaDA: blocks from the end of the prompt, each with an even share of the steps."""
    canvas = Canvas(prompt, args["gen_length"], args["mask_id"])
    length, num_blocks = args["block_length"], args["gen_length"] // args["block_length"]
    steps = args["steps"] // num_blocks
    for block in range(num_blocks):
        first = len(prompt) + block * length
        for i in range(steps):
            law = laws(predict(canvas.tokens, None), canvas.masked(first, first + length), shift=False)
            number = length // steps + (i < length % steps)
            canvas.fill(law, canvas.best(confidence(law), number), block * steps + i)
    return canvas


def dream(predict, prompt, args):
    """Dream and Open-dLLM: the whole answer at once; a share 1 - s/t of the masked slots a step, which may be none."""
    if args["alg"] == "p2":
        return p2(predict, prompt, args)
    score = {"maskgit_plus": confidence, "entropy": negative_entropy, "topk_margin": margin}[args["alg"]]
    canvas, steps = Canvas(prompt, args["max_new_tokens"], args["mask_token_id"]), args["steps"]
    time = torch.linspace(1, args["eps"], steps + 1)
    for i in range(steps):
        masked = canvas.masked()
        law = laws(predict(canvas.tokens, None), masked, shift=True)
        number = int(len(masked) * (1 - time[i + 1] / time[i])) if i < steps - 1 else len(masked)
        canvas.fill(law, canvas.best(score(law), number), i)
    return canvas


def p2(predict, prompt, args):
    """Open-dLLM's path planning: the least confident slots, filled or not, are masked (again) each step."""
    canvas, steps = Canvas(prompt, args["max_new_tokens"], args["mask_token_id"]), args["steps"]
    slots = range(len(prompt), len(canvas.tokens))
    for i in range(steps):
        masked = canvas.masked()
        if not masked:
            break
        law = laws(predict(canvas.tokens, None), slots, shift=True)
        number = int(len(slots) * (1 - (i + 1) / steps))
        again = canvas.best({k: -value for k, value in confidence(law).items()}, number)
        for k in again:
            canvas.tokens[k] = canvas.mask
        canvas.fill(law, [k for k in masked if k not in again], i, for_good=False)
    return canvas


def sdar(predict, prompt, args):
    """SDAR: blocks from position 0, later ones absent; steps are counted inside a block.

    Top-k 1 makes every draw the most likely token and every confidence 1, so the dynamic strategy fills a whole block.
    """
    length = args["block_length"]
    end = math.ceil((len(prompt) + args["gen_length"]) / length) * length
    canvas = Canvas(prompt, end - len(prompt), args["mask_id"])
    number = length // args["denoising_steps"] if args["remasking_strategy"] == "sequential" else length
    for first in range(len(prompt) // length * length, end, length):
        step = 0
        while masked := canvas.masked(first, first + length):
            law = laws(predict(canvas.tokens[: first + length], length), masked, shift=False)
            canvas.fill(law, masked[:number], step)
            step += 1
        if set(args["stopping_criteria_idx"] or []) & set(canvas.tokens[len(prompt) : first + length]):
            break
    return canvas


def llada2(predict, prompt, args):
    """LLaDA2: blocks from position 0; every slot above the threshold, and at least an even share of the steps."""
    length, steps = args["block_length"], args["steps"]
    end = math.ceil((len(prompt) + args["gen_length"]) / length) * length
    canvas, step = Canvas(prompt, end - len(prompt), args["mask_id"]), 0
    for first in range(len(prompt) // length * length, end, length):
        for i in range(steps):
            masked = canvas.masked(first, first + length)
            if not masked:
                break
            law = laws(predict(canvas.tokens[: first + length], length), masked, shift=False)
            number, high = length // steps + (i < length % steps), canvas.above(confidence(law), args["threshold"])
            canvas.fill(law, high if len(high) >= number else canvas.best(confidence(law), number), step)
            step += 1
    return canvas


def fast_dllm_v2(predict, prompt, args):
    """Fast-dLLM v2: blocks from position 0, the first slot of each alone, then sub-blocks with a threshold.

    A finished block gives the first token of the next one too, so an answer ends one slot into a new block.
    """
    length, sub = args["block_size"], args["small_block_size"]
    start = len(prompt) // length * length
    end = start + args["max_new_tokens"] // length * length + 1
    canvas, step = Canvas(prompt, end - len(prompt), args["mask_id"]), 0
    for first in range(start, end, length):
        bounds = [(first, first + 1), *((b, b + sub) for b in range(first, first + length, sub))]
        for low, high in bounds:
            while masked := canvas.masked(low, high):
                padded = [*canvas.tokens, *[canvas.mask] * length][: first + length]
                law = laws(predict(padded, length), masked, shift=True)
                score = confidence(law)
                chosen = {*canvas.above(score, args["threshold"]), *canvas.best(score, 1)}
                canvas.fill(law, sorted(chosen), step)
                step += 1
                if ended(canvas, len(prompt), args["stop_token"]):
                    return canvas
    return canvas


def ended(canvas, start, stop):
    """Whether a stop token stands with nothing masked before it; if so the canvas is cut behind it."""
    answer = canvas.tokens[start:]
    if stop not in answer or canvas.mask in answer[: answer.index(stop)]:
        return False
    del canvas.tokens[start + answer.index(stop) + 1 :]
    del canvas.filled_at[len(canvas.tokens) :]
    return True


DECODERS = {
    "llada": llada,
    "llada_gqa": llada,
    "dream": dream,
    "open_dllm": dream,
    "sdar": sdar,
    "sdar_moe": sdar,
    "llada2": llada2,
    "fast_dllm_v2": fast_dllm_v2,
}
