"""Model families: what a published checkpoint is, said as one record over a stock transformers class.

A dLLM is a stock backbone plus a few facts: how published config fields and weight names map onto the stock class,
which token is the mask, whether logits are shifted, and who may attend to whom. Adding a family is adding one record
to `FAMILIES` and a parity test. This file imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]


class ModelError(ValueError):
    """A checkpoint or its configuration cannot be used; the text names the file, key or field."""


@dataclass(frozen=True)
class Family:
    """Everything that distinguishes one family of published checkpoints from another."""

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json that select this family."""
    backbone: str
    """Stock transformers class with `.model` (the stack) and `.lm_head`."""
    stock_fields: Callable[[Config], dict[str, Any]]
    """Published config.json to keyword arguments of the stock configuration class."""
    shift: bool = False
    """Whether hidden state k - 1 predicts token k."""
    block_causal: bool = False
    """Whether a token sees its own block and earlier ones only; otherwise it sees everything."""
    first_slot_alone: bool = False
    """Whether the first slot of a block is predicted before, and without, the rest of the block."""
    published_names: tuple[tuple[str, str], ...] = ()
    """Replacements that turn a stock weight name into the published one, applied in order."""
    fused_qkv: str | None = None
    """Published name that replaces `self_attn.{q,k,v}_proj` where the three are rows of one matrix."""
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields that change the architecture, with the values under which the stock class is the same computation."""
    mask_token_id: int | None = None
    """Mask id of the released checkpoints, for config.json files without `mask_token_id`."""
    chat_end: tuple[str, ...] = ()
    """Tokens that end an answer besides the end token, looked up in the tokenizer."""
    block_fields: tuple[str, ...] = ()
    """Config fields that may hold the block length, the first present wins."""
    default_block_length: int | None = None
    tied_field: str = "tie_word_embeddings"
    window_field: str = "max_position_embeddings"

    def block_length(self, config: Config) -> int | None:
        """Block length of a block-causal checkpoint; None for the others."""
        if not self.block_causal:
            return None
        return next((int(config[name]) for name in self.block_fields if config.get(name)), self.default_block_length)

    def published_name(self, stock_name: str) -> str:
        """Name under which a published checkpoint keeps the stock weight `stock_name`."""
        for stock, published in self.published_names:
            stock_name = stock_name.replace(stock, published)
        return stock_name

    def check(self, config: Config) -> None:
        """Refuses a config.json that asks for something the stock class does not compute."""
        for name, allowed in self.required.items():
            if name in config and config[name] not in allowed:
                choices = " or ".join(repr(value) for value in allowed)
                raise ModelError(
                    f"config.json: {name} = {config[name]!r} is not supported for {self.name}; allowed: {choices}"
                )


def family_of(config: Config) -> Family:
    """Family that `model_type` of a published config.json names."""
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(f"config.json: model_type is missing; known: {', '.join(known_model_types())}")
    for family in FAMILIES:
        if model_type in family.model_types:
            family.check(config)
            return family
    nearest = difflib.get_close_matches(str(model_type), known_model_types(), n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ModelError(
        f"config.json: model_type = {model_type!r} is not a known diffusion language model.{hint}"
        f" Known: {', '.join(known_model_types())}"
    )


def known_model_types() -> list[str]:
    """Every `model_type` that `family_of` accepts."""
    return [model_type for family in FAMILIES for model_type in family.model_types]


def need(config: Config, name: str) -> Any:
    """Field of config.json that has no sensible default."""
    if config.get(name) is None:
        raise ModelError(f"config.json: {name} is missing")
    return config[name]


def _llada_fields(config: Config) -> dict[str, Any]:
    width, heads = need(config, "d_model"), need(config, "n_heads")
    kv_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
    return {
        "vocab_size": config.get("embedding_size") or need(config, "vocab_size"),
        "hidden_size": width,
        "intermediate_size": config.get("mlp_hidden_size") or need(config, "mlp_ratio") * width,
        "num_hidden_layers": need(config, "n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": need(config, "max_sequence_length"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "initializer_range": config.get("init_std", 0.02),
        "tie_word_embeddings": bool(config.get("weight_tying")),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)},
        "attention_bias": False,
        "mlp_bias": False,
    }


def _qwen_fields(config: Config) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    heads = need(config, "num_attention_heads")
    return {name: need(config, name) for name in names} | {
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "max_position_embeddings": need(config, "max_position_embeddings"),
        "rms_norm_eps": need(config, "rms_norm_eps"),
        "hidden_act": config.get("hidden_act", "silu"),
        "initializer_range": config.get("initializer_range", 0.02),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "rope_parameters": _rope(config),
    }


def _qwen3_fields(config: Config) -> dict[str, Any]:
    head_dim = config.get("head_dim") or need(config, "hidden_size") // need(config, "num_attention_heads")
    return _qwen_fields(config) | {"head_dim": head_dim, "attention_bias": bool(config.get("attention_bias"))}


def _qwen3_moe_fields(config: Config) -> dict[str, Any]:
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
    return (
        _qwen3_fields(config)
        | {name: need(config, name) for name in names}
        | {
            "decoder_sparse_step": config.get("decoder_sparse_step", 1),
            "mlp_only_layers": list(config.get("mlp_only_layers") or []),
        }
    )


def _llada2_fields(config: Config) -> dict[str, Any]:
    head_dim = config.get("head_dim") or need(config, "hidden_size") // need(config, "num_attention_heads")
    rope = _rope(config) | {"partial_rotary_factor": config.get("partial_rotary_factor", 1.0)}
    return _qwen_fields(config) | {
        "head_dim": head_dim,
        "rope_parameters": rope,
        "n_routed_experts": need(config, "num_experts"),
        "n_shared_experts": need(config, "num_shared_experts"),
        "num_experts_per_tok": need(config, "num_experts_per_tok"),
        "moe_intermediate_size": need(config, "moe_intermediate_size"),
        "first_k_dense_replace": need(config, "first_k_dense_replace"),
        "n_group": need(config, "n_group"),
        "topk_group": need(config, "topk_group"),
        "routed_scaling_factor": need(config, "routed_scaling_factor"),
        "norm_topk_prob": config.get("norm_topk_prob", True),
        "use_qk_norm": True,
        "attention_bias": False,
    }


def _rope(config: Config) -> dict[str, Any]:
    scaling = dict(config.get("rope_scaling") or {})
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    return scaling | {"rope_theta": need(config, "rope_theta")}


_LLADA_NAMES = (
    ("lm_head.", "model.transformer.ff_out."),
    ("model.embed_tokens.", "model.transformer.wte."),
    ("model.norm.", "model.transformer.ln_f."),
    ("model.layers.", "model.transformer.blocks."),
    ("input_layernorm.", "attn_norm."),
    ("post_attention_layernorm.", "ff_norm."),
    ("self_attn.o_proj.", "attn_out."),
    ("self_attn.", ""),
    ("mlp.gate_proj.", "ff_proj."),
    ("mlp.up_proj.", "up_proj."),
    ("mlp.down_proj.", "ff_out."),
)

_LLADA_REQUIRED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu",),
    "block_group_size": (1,),
    "rope": (True,),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
}

_QWEN_REQUIRED: dict[str, tuple[Any, ...]] = {"use_sliding_window": (False, None), "use_mrope": (False, None)}

_LLADA2_REQUIRED = _QWEN_REQUIRED | {
    "score_function": ("sigmoid",),
    "use_qk_norm": (True,),
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "use_rmsnorm": (True,),
    "norm_head": (False,),
    "norm_softmax": (False,),
    "moe_router_enable_expert_bias": (True,),
    "using_split_qkv_in_self_attention": (False,),
}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llada",
        model_types=("llada",),
        backbone="LlamaForCausalLM",
        stock_fields=_llada_fields,
        published_names=_LLADA_NAMES,
        required=_LLADA_REQUIRED,
        mask_token_id=126336,
        chat_end=("<|eot_id|>",),
        tied_field="weight_tying",
        window_field="max_sequence_length",
    ),
    Family(
        name="dream",
        model_types=("Dream",),
        backbone="Qwen2ForCausalLM",
        stock_fields=_qwen_fields,
        shift=True,
        required=_QWEN_REQUIRED,
        mask_token_id=151666,
        chat_end=("<|im_end|>",),
    ),
    Family(
        name="open_dllm",
        model_types=("qwen2",),
        backbone="Qwen2ForCausalLM",
        stock_fields=_qwen_fields,
        shift=True,
        required=_QWEN_REQUIRED,
        chat_end=("<|im_end|>",),
    ),
    Family(
        name="fast_dllm_v2",
        model_types=("Fast_dLLM_Qwen",),
        backbone="Qwen2ForCausalLM",
        stock_fields=_qwen_fields,
        shift=True,
        block_causal=True,
        first_slot_alone=True,
        required=_QWEN_REQUIRED,
        mask_token_id=151665,
        chat_end=("<|im_end|>",),
        block_fields=("bd_size",),
        default_block_length=32,
    ),
    Family(
        name="sdar",
        model_types=("sdar",),
        backbone="Qwen3ForCausalLM",
        stock_fields=_qwen3_fields,
        block_causal=True,
        required=_QWEN_REQUIRED,
        mask_token_id=151669,
        chat_end=("<|im_end|>",),
        block_fields=("block_size", "block_length"),
        default_block_length=4,
    ),
    Family(
        name="sdar_moe",
        model_types=("sdar_moe",),
        backbone="Qwen3MoeForCausalLM",
        stock_fields=_qwen3_moe_fields,
        block_causal=True,
        required=_QWEN_REQUIRED,
        mask_token_id=151669,
        chat_end=("<|im_end|>",),
        block_fields=("block_size", "block_length"),
        default_block_length=4,
    ),
    Family(
        name="llada2",
        model_types=("llada2_moe",),
        backbone="Glm4MoeForCausalLM",
        stock_fields=_llada2_fields,
        block_causal=True,
        published_names=(
            ("model.embed_tokens.", "model.word_embeddings."),
            ("self_attn.o_proj.", "attention.dense."),
            ("self_attn.q_norm.", "attention.query_layernorm."),
            ("self_attn.k_norm.", "attention.key_layernorm."),
            ("gate.e_score_correction_bias", "gate.expert_bias"),
        ),
        fused_qkv="attention.query_key_value",
        required=_LLADA2_REQUIRED,
        mask_token_id=156895,
        chat_end=("<|role_end|>",),
        block_fields=("block_size", "block_length"),
        default_block_length=32,
    ),
)
