"""How much memory a run needs, from its settings and the model's config.json alone; nothing is allocated.

D width, F width of the feed-forward layer, A = heads x head dimension, V vocabulary, L layers, b bytes a number.
These are estimates of the large parts; what allocators and libraries add is a line of its own. What is left out:
attention masks, and communication buffers of NCCL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config import SftRecipe, TrainRecipe
from learner.config import EngineConfig
from models.config import ModelConfig
from rollout.config import RolloutConfig

GIB = 2**30
HEAD_CHUNK_BYTES = 64 * 2**20
"""Logits of one chunk of the vocabulary head (`models.head`); about four tensors of this size live at once."""
PROCESS_BYTES = GIB // 2
"""Python with torch, transformers and DeepSpeed loaded."""
LEARNER_BYTES = 800_000_000
"""The same for a learner rank on CPUs, with the temporary tensors of a backward pass (`unmask bench memory`)."""
CUDA_BYTES = GIB
"""CUDA context and fragmentation."""
BUCKET_NUMBERS, LIVE_NUMBERS = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults: gradients reduced at a time, parameters gathered at a time (ZeRO-3)."""
BYTES = {"float32": 4, "bfloat16": 2}

_LLADA_8B = {
    "model_type": "llada",
    "d_model": 4096,
    "mlp_hidden_size": 12288,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "weight_tying": False,
}
_DREAM_7B = {
    "model_type": "Dream",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
_SDAR_8B = {
    "model_type": "sdar",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 36,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
# Sizes as in the config.json of each repository on the Hugging Face hub, so that a dry run needs no network. SDAR-8B
# has the sizes of Qwen3-8B, from which it was adapted; its shards add up to the same 16.4 GB.
PUBLISHED: dict[str, Mapping[str, Any]] = {
    "GSAI-ML/LLaDA-8B-Base": _LLADA_8B,
    "GSAI-ML/LLaDA-8B-Instruct": _LLADA_8B,
    "GSAI-ML/LLaDA-1.5": _LLADA_8B,
    "Dream-org/Dream-v0-Base-7B": _DREAM_7B,
    "Dream-org/Dream-v0-Instruct-7B": _DREAM_7B,
    "apple/DiffuCoder-7B-Instruct": _DREAM_7B,
    "JetLM/SDAR-8B-Chat": _SDAR_8B,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that memory depends on."""

    parameters: int
    """Weights, adapters included."""
    trainable: int
    base: int
    """Weights without adapters."""
    width: int
    feed_forward: int
    """F, over the experts that one token visits."""
    attention: int
    key_value: int
    """Channels of all key heads."""
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class Footprint:
    """Memory of one process, part by part."""

    who: str
    count: int
    device: str
    """`GPU`, `CPU` or `object store`."""
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """Bytes of one process."""
        return sum(size for _, size in self.parts)


def shape_of(config: Mapping[str, Any], model: ModelConfig) -> Shape:
    """Sizes from a published config.json and the adapter that a recipe adds."""
    from models.estimate import estimate_bytes
    from models.family import family_of

    size = estimate_bytes(dict(config), lora=model.lora)
    fields = family_of(config).stock_fields(config)
    head = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    return Shape(
        parameters=size.num_parameters,
        trainable=size.num_trainable,
        base=size.num_parameters - (size.num_trainable if model.lora else 0),
        width=size.width,
        feed_forward=_feed_forward(fields),
        attention=head * fields["num_attention_heads"],
        key_value=head * (fields.get("num_key_value_heads") or fields["num_attention_heads"]),
        layers=size.num_layers,
        vocabulary=size.vocab_size,
    )


def _feed_forward(fields: Mapping[str, Any]) -> int:
    if "num_experts_per_tok" not in fields:
        return int(fields["intermediate_size"])
    return int(fields["moe_intermediate_size"] * (fields["num_experts_per_tok"] + fields.get("n_shared_experts", 0)))


def footprints(recipe: TrainRecipe | SftRecipe, config: Mapping[str, Any]) -> list[Footprint]:
    """Memory of each kind of process of a run."""
    shape = shape_of(config, recipe.model)
    found = []
    if isinstance(recipe, TrainRecipe):
        rollout = recipe.rollout
        parts = serving_parts(shape, recipe.model, rollout)
        found.append(_process("rollout worker", rollout.num_workers, rollout.gpus_per_worker, parts))
    engine = recipe.learner.engine
    frozen = isinstance(recipe, TrainRecipe) and recipe.learner.objective.needs_reference and recipe.model.lora is None
    parts = _training(shape, engine, reference=frozen)
    on_host = _offloaded(shape, engine, dict(parts)) if engine.gpus_per_rank else {}
    parts = [(name, size - on_host.get(name, 0)) for name, size in parts]
    found.append(_process("learner rank", engine.num_ranks, engine.gpus_per_rank, parts, LEARNER_BYTES))
    if on_host:
        found.append(_process("host of a learner rank", engine.num_ranks, 0, list(on_host.items()), LEARNER_BYTES))
    if isinstance(recipe, TrainRecipe) and recipe.cluster.mode == "ray":
        size = 2 * shape.trainable * BYTES[engine.dtype]
        found.append(Footprint("published weights", 1, "object store", (("two versions", size),)))
    return found


def _process(
    who: str, count: int, num_gpus: float, parts: list[tuple[str, int]], process_bytes: int = PROCESS_BYTES
) -> Footprint:
    overhead = ("CUDA context", CUDA_BYTES) if num_gpus else ("process", process_bytes)
    return Footprint(who, count, "GPU" if num_gpus else "CPU", (*parts, overhead))


def serving_parts(shape: Shape, model: ModelConfig, rollout: RolloutConfig) -> list[tuple[str, int]]:
    """Parts of a process that denoises."""
    b, max_batch_tokens = BYTES[model.dtype], rollout.max_batch_tokens
    wide = max(4 * shape.attention + shape.width, 3 * shape.feed_forward)
    per_token = (2 * shape.width + wide) * b + 8 * shape.width
    kept = 0 if rollout.cache.kind == "none" else 2 * shape.layers * shape.key_value * b
    return [
        ("weights", shape.parameters * b),
        ("activations", max_batch_tokens * per_token),
        ("kept keys and values", max_batch_tokens * kept),
        ("head chunk", _head(shape, max_batch_tokens)),
    ]


def _training(shape: Shape, engine: EngineConfig, *, reference: bool) -> list[tuple[str, int]]:
    """Parts of one rank. The shares that ZeRO splits over ranks: optimizer from stage 1, gradients 2, weights 3."""
    b, stage, ranks = BYTES[engine.dtype], engine.zero_stage, engine.num_ranks
    weights = shape.parameters * b
    gathered = min(shape.parameters, LIVE_NUMBERS) * b if stage == 3 and ranks > 1 else 0
    bucket = min(shape.trainable, BUCKET_NUMBERS) * b
    # Two moments; a float32 master copy and float32 gradients at the update, where DeepSpeed keeps its own partition.
    per_number = 8 + (4 if b == 2 or stage else 0) + (4 if b == 2 else 0)
    saved = _saved(shape, b, recompute=engine.activation_checkpointing is True)
    # A trained head keeps the slopes of a few chunks for its weight's gradient (`models.vocabulary`).
    slopes = min(4 * HEAD_CHUNK_BYTES, shape.vocabulary * engine.micro_batch_tokens * b)
    parts = [
        ("weights", weights // (ranks if stage == 3 else 1) + gathered),
        ("gradients", shape.trainable * b // (ranks if stage >= 2 else 1) + bucket),
        ("optimizer", shape.trainable * per_number // (ranks if stage else 1)),
        ("activations", engine.micro_batch_tokens * saved),
        ("head chunks", _head(shape, engine.micro_batch_tokens) + (slopes if shape.trainable >= shape.base else 0)),
    ]
    return [*parts, ("reference", shape.base * b)] if reference else parts


def _offloaded(shape: Shape, engine: EngineConfig, parts: Mapping[str, int]) -> dict[str, int]:
    """What of a rank's parts on a GPU lives in CPU memory instead."""
    found = {"optimizer": parts["optimizer"]} if engine.offload != "none" else {}
    if engine.offload == "parameters":
        found["weights"] = shape.parameters * BYTES[engine.dtype] // engine.num_ranks
    return found


def _saved(shape: Shape, b: int, *, recompute: bool) -> int:
    """Bytes per token kept for the backward pass. With `auto` all are kept, unless they do not fit at the start."""
    from learner.activations import Widths, saved_bytes_per_token

    widths = Widths(shape.layers, shape.width, shape.attention, shape.key_value, shape.feed_forward)
    return saved_bytes_per_token(widths, b, recompute=recompute)


def _head(shape: Shape, num_positions: int) -> int:
    return 4 * min(HEAD_CHUNK_BYTES, 4 * shape.vocabulary * num_positions)
