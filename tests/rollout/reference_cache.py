"""The cache rules, slow and obvious: one sequence, dense attention written out, keys kept in a list by position."""

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class KeptForward:
    """Predictions under `prefix` or `dual` with a refresh rule; give an instance to `reference_decoder.decode`."""

    def __init__(self, denoiser, prompt_length, *, kind, refresh="block", window=32, drift=0.05, period=None):
        self.denoiser, self.prompt_length = denoiser, prompt_length
        self.kind, self.refresh, self.window, self.drift, self.period = kind, refresh, window, drift, period
        self.keys = [{} for _ in denoiser.backbone.model.layers]
        self.values = [{} for _ in denoiser.backbone.model.layers]
        self.all_next, self.since = True, 0
        self.computed = []

    def __call__(self, tokens, block, step_in_block):
        due = self.period is not None and self.since >= self.period
        refreshes = self.all_next or step_in_block == 0 or due
        if self.all_next:
            start, stop = 0, len(tokens)
        elif refreshes:
            start, stop = self.refreshed(block, len(tokens))
        else:
            start, stop = block if self.kind == "dual" else (block[0], len(tokens))
        start = min(start, block[0] - self.denoiser.family.shift)
        watched = self.refresh == "drift" and refreshes and not self.all_next
        before = dict(self.keys[-1])
        hidden = self.forward(tokens, start, stop)
        self.computed.append([start, stop])
        self.since = 1 if refreshes else self.since + 1
        self.all_next = watched and self.turned(before, start, stop) > self.drift
        raw = torch.full((len(tokens), self.denoiser.vocab_size), float("nan"))
        raw[start:stop] = self.denoiser.head(hidden).float()
        return raw

    def refreshed(self, block, length):
        if self.refresh == "block":
            return 0, length
        if self.refresh == "generated":
            return self.prompt_length, length
        return max(0, block[0] - self.window), min(length, block[1] + self.window)

    def turned(self, before, start, stop):
        cosines = [
            torch.cosine_similarity(before[k].flatten(), self.keys[-1][k].flatten(), dim=0) for k in range(start, stop)
        ]
        return float(1 - torch.stack(cosines).mean())

    @torch.no_grad()
    def forward(self, tokens, start, stop):
        model = self.denoiser.backbone.model
        x = model.embed_tokens(torch.tensor([tokens[start:stop]]))
        cos, sin = model.rotary_emb(x, torch.arange(start, stop)[None])
        for number, layer in enumerate(model.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(x)
            query, key, value = (
                projection(normed).view(1, stop - start, -1, attention.head_dim).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            for offset, position in enumerate(range(start, stop)):
                self.keys[number][position] = key[0, :, offset]
                self.values[number][position] = value[0, :, offset]
            keys = torch.stack([self.keys[number][k] for k in range(len(tokens))], dim=1)
            values = torch.stack([self.values[number][k] for k in range(len(tokens))], dim=1)
            group = query.shape[1] // keys.shape[0]
            keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
            weights = (query[0] @ keys.transpose(1, 2) * attention.scaling).softmax(-1)
            output = (weights @ values).transpose(0, 1).reshape(1, stop - start, -1)
            x = x + attention.o_proj(output)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.norm(x)[0]
