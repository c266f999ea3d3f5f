"""Tiny denoisers with random weights, one of each kind of family, and a toy whose conditionals are known exactly."""

import math
from types import SimpleNamespace

import numpy as np
import torch

import models
from models.packing import Packing
from rollout.records import Trajectory

EOS, MASK, VOCAB = 0, 1, 12
_QWEN = {
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
    "mask_token_id": MASK,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}
CONFIGS = {
    "llada": models.TINY_CONFIG
    | {
        "d_model": 16,
        "mlp_hidden_size": 24,
        "n_heads": 2,
        "n_kv_heads": 2,
        "n_layers": 2,
        "max_sequence_length": 64,
        "vocab_size": VOCAB,
        "embedding_size": VOCAB,
        "mask_token_id": MASK,
        "eos_token_id": EOS,
    },
    "dream": _QWEN | {"model_type": "Dream"},
    "sdar": _QWEN | {"model_type": "sdar", "head_dim": 8, "block_size": 4, "attention_bias": False},
    "fast_dllm_v2": _QWEN | {"model_type": "Fast_dLLM_Qwen", "bd_size": 4},
}


def small_denoiser(family, seed=0):
    """Random weights large enough that predictions are far from uniform and depend on the whole canvas."""
    denoiser = models.create(CONFIGS[family], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5, generator=generator)
    return denoiser


def trajectory(tokens, step_map, *, prompt=(5, 6), num_steps=None, **fields):
    """A trajectory of given tokens and steps; log-probabilities are zero unless given."""
    tokens, step_map = np.array(tokens, dtype=np.int64), np.array(step_map, dtype=np.int32)
    num_steps = int(step_map.max()) + 1 if num_steps is None else num_steps
    ends = np.flatnonzero((tokens == EOS) & (step_map < num_steps))
    known = {
        "logprobs": np.zeros(len(tokens), dtype=np.float32),
        "entropies": np.zeros(len(tokens), dtype=np.float32),
        "num_steps": num_steps,
        "num_forwards": num_steps,
        "finish_reason": "eos" if len(ends) else "length",
        "answer_length": int(ends[0]) if len(ends) else len(tokens),
        "seed": 0,
        "sampler": "random",
        "exact_likelihood": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "block_length": len(tokens),
        "prompt_tokens": np.array(prompt, dtype=np.int64),
    }
    return Trajectory(tokens=tokens, step_map=step_map, **known | fields)


def obvious_logprob(denoiser, answer, slot, temperature=1.0):
    """log p of one committed slot: one canvas as it was at that step, every position's logits, no batching."""
    start, end = len(answer.prompt_tokens), len(answer.prompt_tokens) + len(answer.tokens)
    step = answer.step_map[slot]
    canvas = [int(token) for token in answer.prompt_tokens]
    for k in range(len(answer.tokens)):
        canvas.append(MASK if answer.step_map[k] >= step else int(answer.tokens[k]))
    length = None
    if denoiser.family.block_causal:
        length = answer.block_length
        end = min(end, ((start + slot) // length + 1) * length)
    logits = denoiser.logits(torch.tensor([canvas[:end]]), block_length=length)[0]
    row = logits[max(start + slot - 1, 0) if denoiser.family.shift else start + slot].clone()
    row[MASK] = -math.inf
    return (row / temperature).log_softmax(0)[int(answer.tokens[slot])]


class Toy(torch.nn.Module):
    """Two slots after a prompt of one token; its laws are the true conditionals of a joint P (tokens a = 2, b = 3).

    P(aa) = .54, P(ab) = .06, P(ba) = .08, P(bb) = .32. Logits are a table, so the head is the identity.
    """

    A, B = 2, 3

    def __init__(self):
        super().__init__()
        self.family = SimpleNamespace(name="toy", shift=False, block_causal=False)
        self.mask_token_id, self.eos_token_id, self.vocab_size = MASK, EOS, 4
        self.device = torch.device("cpu")
        self.backbone = SimpleNamespace(lm_head=torch.nn.Identity())
        joint = torch.tensor([[0.54, 0.06], [0.08, 0.32]])
        table = torch.full((2, 4, 4), -torch.inf)  # [slot, what the other slot holds, token]
        table[0, MASK, 2:], table[1, MASK, 2:] = joint.sum(1).log(), joint.sum(0).log()
        for other in (0, 1):
            table[0, 2 + other, 2:] = (joint[:, other] / joint[:, other].sum()).log()
            table[1, 2 + other, 2:] = (joint[other] / joint[other].sum()).log()
        self.table = torch.nn.Parameter(table)

    def packing(self, spans, *, block_length=None):
        return Packing(spans, device=self.device, block_length=None)

    def start(self, token_M, packing):
        first, second = token_M.view(-1, 3)[:, 1], token_M.view(-1, 3)[:, 2]
        hidden_BND = torch.stack([self.table[0, second], self.table[0, second], self.table[1, first]], dim=1)
        return SimpleNamespace(hidden=lambda flat_W, counts: hidden_BND.flatten(0, 1)[flat_W])

    def head(self, hidden_MD):
        return hidden_MD
