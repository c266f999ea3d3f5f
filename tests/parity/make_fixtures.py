"""Makes `fixtures/`: checkpoints cut from the tiny published-layout ones, with expected values from an oracle.

    python tests/parity/make_fixtures.py PARITY_FOLDER

The oracle below is a plain float64 transformer written on the published weight names, one sequence and one layer at a
time. It shares no code with `models/`. Before anything is cut it must reproduce the logits and attention that the
published modelling code gave for every checkpoint in PARITY_FOLDER (1e-4 and 1e-5), and, under `published_decoders.py`,
every exact generation there, token by token.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from published_decoders import DECODERS, MaskPredictedError
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parent / "fixtures"
VOCAB, WIDTH, HEAD, INNER, LENGTH = 32, 32, 16, 32, 12
MASK, EOS = 31, 30

QWEN = {
    "embed": "model.embed_tokens.weight",
    "final": "model.norm.weight",
    "head": "lm_head.weight",
    "layer": "model.layers.{}.",
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
LLADA = QWEN | {
    "embed": "model.transformer.wte.weight",
    "final": "model.transformer.ln_f.weight",
    "head": "model.transformer.ff_out.weight",
    "layer": "model.transformer.blocks.{}.",
    "norm1": "attn_norm.weight",
    "norm2": "ff_norm.weight",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out.weight",
    "gate": "ff_proj.weight",
    "up": "up_proj.weight",
    "down": "ff_out.weight",
}
LLADA2 = QWEN | {
    "embed": "model.word_embeddings.weight",
    "o": "attention.dense.weight",
    "qkv": "attention.query_key_value.weight",
    "q_norm": "attention.query_layernorm.weight",
    "k_norm": "attention.key_layernorm.weight",
}
NAMES = {"llada": LLADA, "llada2_moe": LLADA2}


def dims(config):
    """Sizes under one set of names."""
    if config["model_type"] == "llada":
        return {
            "layers": config["n_layers"],
            "heads": config["n_heads"],
            "kv": config["n_kv_heads"],
            "head": config["d_model"] // config["n_heads"],
            "rotary": config["d_model"] // config["n_heads"],
        }
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return {
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv": config["num_key_value_heads"],
        "head": head,
        "rotary": int(head * config.get("partial_rotary_factor", 1.0)),
    }


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x_HNE, position_N, rotary, theta):
    """Rotates the first `rotary` channels, pairing channel c with channel c + rotary / 2."""
    half = rotary // 2
    angle = position_N.double()[:, None] / theta ** (torch.arange(half).double() * 2 / rotary)
    a, b, rest = x_HNE[..., :half], x_HNE[..., half:rotary], x_HNE[..., rotary:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)


def mlp(x, gate, up, down):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def experts(x_ND, w, config):
    """Sum over the chosen experts, token by token."""
    out = torch.zeros_like(x_ND)
    logits_NX = x_ND @ w["mlp.gate.weight"].T
    for n, logit_X in enumerate(logits_NX):
        if config["model_type"] == "llada2_moe":
            score_X = logit_X.sigmoid()
            ranked = (score_X + w["mlp.gate.expert_bias"]).view(config["n_group"], -1)
            best_groups = ranked.topk(2, -1).values.sum(-1).topk(config["topk_group"]).indices
            allowed = torch.full_like(ranked, float("-inf"))
            allowed[best_groups] = ranked[best_groups]
            chosen = allowed.view(-1).topk(config["num_experts_per_tok"]).indices
            weight = score_X[chosen] / score_X[chosen].sum() * config["routed_scaling_factor"]
        else:
            score_X = logit_X.softmax(-1)
            chosen = score_X.topk(config["num_experts_per_tok"]).indices
            weight = score_X[chosen] / score_X[chosen].sum()
        for expert, share in zip(chosen.tolist(), weight, strict=True):
            parts = [w[f"mlp.experts.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down")]
            out[n] += share * mlp(x_ND[n], *parts)
    if "mlp.shared_experts.up_proj.weight" in w:
        out += mlp(x_ND, *(w[f"mlp.shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down")))
    return out


def oracle(weights, config, tokens_N, position_N, visible_NN):
    """Logits (N, V) and last-layer attention, mean over heads (N, N), of one sequence."""
    names, size = NAMES.get(config["model_type"], QWEN), dims(config)
    weights = {name: value.double() for name, value in weights.items()}
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    x_ND = weights[names["embed"]][tokens_N]
    for layer in range(size["layers"]):
        prefix = names["layer"].format(layer)
        w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        h_ND = rms(x_ND, w[names["norm1"]], eps)
        if "qkv" in names:
            rows = [size["heads"] * size["head"], size["kv"] * size["head"], size["kv"] * size["head"]]
            q, k, v = (h_ND @ part.T for part in w[names["qkv"]].split(rows))
        else:
            q, k, v = (h_ND @ w[f"{names[n]}.weight"].T + w.get(f"{names[n]}.bias", 0.0) for n in "qkv")
        q, k, v = (part.view(len(tokens_N), -1, size["head"]).transpose(0, 1) for part in (q, k, v))
        if names["q_norm"] in w:
            q, k = rms(q, w[names["q_norm"]], eps), rms(k, w[names["k_norm"]], eps)
        q, k = (rotate(part, position_N, size["rotary"], theta) for part in (q, k))
        k, v = (part.repeat_interleave(size["heads"] // size["kv"], 0) for part in (k, v))
        score = (q @ k.transpose(1, 2)) / size["head"] ** 0.5
        attention_HNN = score.masked_fill(~visible_NN, float("-inf")).softmax(-1)
        x_ND = x_ND + (attention_HNN @ v).transpose(0, 1).reshape(len(tokens_N), -1) @ w[names["o"]].T
        h_ND = rms(x_ND, w[names["norm2"]], eps)
        dense = [w[names[part]] for part in ("gate", "up", "down")] if names["gate"] in w else None
        x_ND = x_ND + (mlp(h_ND, *dense) if dense else experts(h_ND, w, config))
    head = weights.get(names["head"], weights[names["embed"]])
    return rms(x_ND, weights[names["final"]], eps) @ head.T, attention_HNN.mean(0)


def expected(weights, config, case):
    """Fields of one case, from its inputs."""
    tokens, mask = case["input_ids"], case.get("attention_mask")
    position = torch.arange(tokens.shape[1])
    if "noisy_input_ids" in case:
        clean = tokens.repeat(len(case["noisy_input_ids"]) // len(tokens), 1)
        tokens, position = torch.cat([case["noisy_input_ids"], clean], 1), position.repeat(2)
    logits, attention = [], []
    for row, ids in enumerate(tokens):
        valid = torch.ones(len(ids), dtype=torch.bool)
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool)
        if mask is not None and mask.dtype == torch.bool:
            visible = mask
        elif mask is not None:
            valid = mask[row].bool()
            visible = valid[None, :] | torch.eye(len(ids), dtype=torch.bool)
        logit, attend = oracle(weights, config, ids, position, visible)
        logits.append(logit * valid[:, None])
        attention.append(attend * valid[:, None])
    num_out = case.get("noisy_input_ids", tokens).shape[1]
    return {"logits": torch.stack(logits)[:, :num_out].float(), "attn_last": torch.stack(attention).float()}


def cases(tensors):
    """`case.field` tensors, by case."""
    found = {}
    for name, value in tensors.items():
        case, _, field = name.partition(".")
        found.setdefault(case, {})[field] = value
    return found


def check_oracle(folder):
    """The oracle against the numbers of the published code."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    for name, case in cases(load_file(folder / "expected.safetensors")).items():
        ours = expected(weights, config, case)
        worst = [float((ours[field] - case[field]).abs().max()) for field in ("logits", "attn_last")]
        print(f"{folder.name:14} {name:14} logits {worst[0]:.1e}  attention {worst[1]:.1e}")
        assert worst[0] < 1e-4, worst
        assert worst[1] < 1e-5, worst


def predictor(weights, config, forbidden=()):
    """`predict` of the published decoders, by the oracle; forbidden tokens get no probability."""

    def predict(tokens, block_length):
        position_N = torch.arange(len(tokens))
        block_N = position_N // (block_length or len(tokens))
        visible_NN = block_N[None, :] <= block_N[:, None]
        logits_NV, _ = oracle(weights, config, torch.tensor(tokens), position_N, visible_NN)
        logits_NV[:, list(forbidden)] = float("-inf")
        return logits_NV

    return predict


def unpadded(run):
    """Prompts of a run without their padding."""
    masks = run.get("prompt_attention_mask") or [[1] * len(row) for row in run["prompt_ids"]]
    return [
        [token for token, real in zip(row, mask, strict=True) if real]
        for row, mask in zip(run["prompt_ids"], masks, strict=True)
    ]


def check_decoder(folder):
    """The decoders over the oracle against the generations of the published code."""
    config = json.loads((folder / "config.json").read_text())
    predict = predictor(load_file(folder / "model.safetensors"), config)
    for index, run in enumerate(json.loads((folder / "expected_generate.json").read_text())["runs"]):
        if run["args"].get("use_block_cache"):
            continue  # an approximation: stale keys within a block
        for row, prompt in enumerate(unpadded(run)):
            canvas = DECODERS[folder.name](predict, prompt, run["args"])
            num_padding = len(run["prompt_ids"][row]) - len(prompt)
            if "generated_ids" in run:
                assert canvas.tokens[len(prompt) :][: run["args"]["gen_length"]] == run["generated_ids"][row], index
            else:
                assert canvas.tokens == run["output_ids"][row][num_padding:], index
            for field in {"unmask_step", "unmask_step_in_block"} & set(run):
                assert canvas.filled_at == run[field][row][num_padding:], (index, field)
        print(f"{folder.name:14} generation {index} equal")


def cut_config(config):
    """The same architecture, smaller."""
    is_llada = config["model_type"] == "llada"
    kv = 1 if (config["n_kv_heads"] < config["n_heads"] if is_llada else True) else 2
    small = {"eos_token_id": EOS, "pad_token_id": EOS, "vocab_size": VOCAB}
    if is_llada:
        small |= {"d_model": WIDTH, "embedding_size": VOCAB, "n_heads": 2, "n_kv_heads": kv, "n_layers": 2}
        small |= {"mlp_hidden_size": INNER}
    else:
        small |= {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 2}
        small |= {"num_hidden_layers": 2, "num_key_value_heads": kv}
    if "head_dim" in config:
        small["head_dim"] = HEAD
    if "num_experts" in config:
        small |= {"num_experts": 8, "moe_intermediate_size": 16, "num_experts_per_tok": 3}
    if config["model_type"] == "llada2_moe":
        small |= {"rotary_dim": HEAD // 2, "n_group": 4, "topk_group": 2}
    if "layer_types" in config:
        small["layer_types"] = config["layer_types"][:2]
    for name in ("block_size", "bd_size"):
        if name in config:
            small[name] = 4
    dtype_field = "dtype" if "dtype" in config else "torch_dtype"
    return {**config, **small, "mask_token_id": MASK, dtype_field: "bfloat16"}


def cut_weights(weights, shapes):
    """Leading rows and columns of each published tensor, rounded to bfloat16 (the router's bias stays float32).

    Smaller matrices get larger entries, so that activations keep their size.
    """
    small = {}
    for name, shape in shapes.items():
        value = weights[name][tuple(slice(n) for n in shape)].clone()
        assert value.shape == shape, (name, tuple(value.shape), shape)
        if value.dim() == 2:
            value *= (weights[name].shape[1] / shape[1]) ** 0.5
        small[name] = value if name.endswith("expert_bias") else value.bfloat16()
    return small


def cut_shapes(weights, config, old):
    """Published shapes of the smaller model, from the old shapes and the two configurations."""
    size, before = dims(config), dims(old)
    width = {old.get("d_model", old.get("hidden_size")): WIDTH}
    shapes = {}
    for name, value in weights.items():
        layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        expert = int(name.split("experts.")[1].split(".")[0]) if ".experts." in name else 0
        if layer >= size["layers"] or expert >= config.get("num_experts", 1):
            continue
        leaf = name.rsplit(".", 2)[-2]
        rows = {
            "q_proj": size["heads"] * size["head"],
            "k_proj": size["kv"] * size["head"],
            "v_proj": size["kv"] * size["head"],
            "query_key_value": (size["heads"] + 2 * size["kv"]) * size["head"],
        }
        inner = config["moe_intermediate_size"] if "expert" in name else INNER
        is_head = name in ("lm_head.weight", "model.transformer.ff_out.weight")
        if leaf in ("wte", "embed_tokens", "word_embeddings") or is_head:
            shape = (VOCAB, WIDTH)
        elif leaf in rows:
            shape = (rows[leaf], WIDTH) if value.dim() == 2 else (rows[leaf],)
        elif leaf in ("o_proj", "dense", "attn_out"):
            shape = (WIDTH, size["heads"] * size["head"])
        elif leaf in ("gate_proj", "up_proj", "ff_proj"):
            shape = (inner, WIDTH)
        elif leaf in ("down_proj", "ff_out"):
            shape = (WIDTH, inner)
        elif leaf == "gate":
            shape = (config["num_experts"], WIDTH) if value.dim() == 2 else (config["num_experts"],)
        elif value.shape[0] == before["head"] and leaf not in ("norm", "ln_f"):
            shape = (size["head"],)
        else:
            shape = (width[value.shape[0]],)
        shapes[name] = shape
    return shapes


def inputs(family, generator):
    """Cases of a family: tokens, padding and block masks."""
    tokens = torch.randint(0, 29, (2, LENGTH), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.4] = MASK
    tokens[:, :2] = torch.tensor([5, 7])
    position = torch.arange(LENGTH)
    block = {f"block{n}": (position[:, None] // n >= position[None, :] // n) for n in (4, 6)}
    made = {"base": {"input_ids": tokens}}
    if family in ("llada", "llada_gqa", "dream", "open_dllm"):
        for side, columns in (("left_pad", slice(0, 3)), ("right_pad", slice(LENGTH - 3, LENGTH))):
            mask = torch.ones(2, LENGTH, dtype=torch.long)
            mask[1, columns] = 0
            made[side] = {"input_ids": tokens.where(mask.bool(), torch.tensor(EOS)), "attention_mask": mask}
        return made
    made = {
        name: {"input_ids": tokens, "attention_mask": mask, "block_length": torch.tensor([int(name[5:])])}
        for name, mask in block.items()
    }
    if family in ("sdar", "fast_dllm_v2"):
        clean = tokens.where(tokens != MASK, torch.tensor(3))
        b = position // 4
        off_diagonal, same = b[:, None] > b[None, :], b[:, None] == b[None, :]
        rows = [torch.cat([same, off_diagonal], 1), torch.cat([torch.zeros_like(same), same | off_diagonal], 1)]
        made["train"] = {"input_ids": clean, "noisy_input_ids": tokens, "attention_mask": torch.cat(rows)}
        made["train"]["block_length"] = torch.tensor([4])
    return made


def generation_args(family):
    """Arguments of the runs of a family, as its published sampler takes them."""
    if family in ("llada", "llada_gqa"):
        common = {"gen_length": 12, "temperature": 0.0, "remasking": "low_confidence", "mask_id": MASK}
        return [common | {"steps": steps, "block_length": length} for steps, length in ((12, 4), (4, 6), (5, 12))]
    if family in ("dream", "open_dllm"):
        common = {"max_new_tokens": 12, "temperature": 0.0, "eps": 0.001, "mask_token_id": MASK}
        rules = [("maskgit_plus", 12), ("entropy", 12), ("topk_margin", 5)]
        if family == "open_dllm":
            rules = [("maskgit_plus", 5), ("entropy", 12), ("p2", 6)]
        return [common | {"alg": alg, "steps": steps} for alg, steps in rules]
    if family in ("sdar", "sdar_moe"):
        common = {"gen_length": 12, "block_length": 4, "mask_id": MASK, "top_k": 1, "stopping_criteria_idx": None}
        rules = [("sequential", 4, None), ("sequential", 2, None), ("low_confidence_dynamic", 4, None)]
        rules.append(("sequential", 4, [EOS]))
        return [
            common | {"remasking_strategy": rule, "denoising_steps": steps, "stopping_criteria_idx": stop}
            for rule, steps, stop in rules
        ]
    if family == "llada2":
        common = {"gen_length": 11, "block_length": 4, "mask_id": MASK, "eos_id": EOS, "temperature": 0.0}
        return [
            common | {"steps": steps, "threshold": tau} for steps, tau in ((4, 0.95), (2, 0.95), (4, 0.3), (2, 0.15))
        ]
    common = {"max_new_tokens": 12, "block_size": 4, "mask_id": MASK, "temperature": 0, "stop_token": EOS}
    return [
        common | {"small_block_size": sub, "threshold": tau} for sub, tau in ((4, 1.0), (2, 1.0), (4, 0.3), (2, 0.3))
    ]


def generation(family, weights, config, args, *, num_rows):
    """One run: prompts of unequal length whose answers are not monotonous, hang on no near tie and hold no mask token.

    An answer ends only if the run names stop tokens that other runs of the family lack. What the mask token's
    probability does to the ranking decides nothing: without it the answer is the same.
    """
    decode, rows, stops = DECODERS[family], [], bool(args.get("stopping_criteria_idx"))
    generator = torch.Generator().manual_seed(11)
    predict, without_mask = predictor(weights, config), predictor(weights, config, [MASK])
    for _ in range(4000):
        length = 3 + 3 * len(rows)
        prompt = torch.randint(0, EOS, (length,), generator=generator).tolist()
        with contextlib.suppress(MaskPredictedError):
            canvas = decode(predict, prompt, args)
            answer = canvas.tokens[length:]
            ends = EOS in answer[1:6] if stops else EOS not in answer
            clear = min(canvas.token_margin, canvas.choice_margin) > 3e-4
            if not (ends and clear and len(set(answer)) >= 4):
                continue
            other = decode(without_mask, prompt, args)
            if (other.tokens, other.filled_at) == (canvas.tokens, canvas.filled_at):
                rows.append((prompt, canvas))
        if len(rows) == num_rows:
            break
    assert len(rows) == num_rows, (family, args, len(rows))
    return {
        "args": args,
        "prompt_ids": [prompt for prompt, _ in rows],
        "output_ids": [canvas.tokens for _, canvas in rows],
        "unmask_step": [canvas.filled_at for _, canvas in rows],
        "min_token_margin": round(min(canvas.token_margin for _, canvas in rows), 6),
        "min_selection_margin": round(min(canvas.choice_margin for _, canvas in rows), 6),
    }


def make_generations(family, weights, config):
    """`expected_generate.json`, a run a line."""
    runs = [generation(family, weights, config, args, num_rows=2) for args in generation_args(family)]
    for run in runs:
        if run["args"].get("alg") == "p2":
            del run["unmask_step"]  # it masks filled slots again
        if family in ("sdar", "sdar_moe"):
            run["unmask_step_in_block"] = run.pop("unmask_step")
        if run["min_selection_margin"] == float("inf"):
            del run["min_selection_margin"]
    lines = ",\n".join(json.dumps(run) for run in runs)
    return f'{{"runs": [\n{lines}\n]}}\n'


def make(folder):
    """One folder of `fixtures/`."""
    old = json.loads((folder / "config.json").read_text())
    config = cut_config(old)
    weights = load_file(folder / "model.safetensors")
    small = cut_weights(weights, cut_shapes(weights, config, old))
    tensors = {}
    for name, case in inputs(folder.name, torch.Generator().manual_seed(7)).items():
        fields = case | expected(small, config, case)
        tensors |= {f"{name}.{field}": value.clone() for field, value in fields.items()}
    target = FIXTURES / folder.name
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(small, target / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, target / "expected.safetensors")
    (target / "expected_generate.json").write_text(make_generations(folder.name, small, config))
    for file in target.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    for published in sorted(path.parent for path in Path(sys.argv[1]).glob("*/config.json")):
        check_oracle(published)
        check_decoder(published)
        make(published)
